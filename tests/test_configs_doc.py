"""docs/configs.md says what the configs' comments say, of every key."""

import pytest

from docs import configs
from jaxdiff import configuration

OF_FILE = {
  name: configs.keys((configs.ROOT / "configs" / f"{name}.py").read_text()) for name in configs.FILES
}


def test_the_page_is_what_the_comments_make():
  assert configs.PAGE.read_text(encoding="utf-8") == configs.page(), "run python -m docs.configs"


def test_every_config_file_has_its_place():
  assert {path.stem for path in (configs.ROOT / "configs").glob("[!_]*.py")} == set(configs.FILES)


@pytest.mark.parametrize("name", configs.FILES)
def test_every_new_key_has_a_comment(name):
  shared = {key.name for key in OF_FILE["base"]} if name != "base" else set()
  new = [key for key in OF_FILE[name] if key.name not in shared and key.default]
  assert new and not [key.name for key in new if not key.comment]


@pytest.mark.parametrize("name", [name for name in configs.FILES if name != "base"])
def test_no_key_is_left_out(name):
  """What the file makes when it is run has no key that reading it did not find."""
  found = {key.name for key in OF_FILE["base"] + OF_FILE[name]}
  made = set(configuration.flatten(configuration.load(f"configs/{name}.py")))
  assert made and made <= found


def test_what_a_file_sets_by_a_function_is_told_too():
  told = configs._changed("controlnet_cfg", OF_FILE["controlnet_cfg"], OF_FILE["base"])
  made = configuration.load("configs/controlnet_cfg.py")
  assert told["optim.learning_rate"] == made.optim.learning_rate == 3e-3 and told["task"] == "controlnet"
  assert "optim.clip_norm" not in told, "it is what base.py says"


SOURCE = """\
def helper(c):
  c.a = 1  # not a key of get_config


def get_config():
  c = ConfigDict()  # no key either
  c.data = ConfigDict()  # a section
  c.data.size = 8  # pixels
  # one | two
  # | three
  c.data.kind = "a#b"
  c.data.bare = 0

  # of the next line but one

  c.data.far = (
    1,
    2,
  )  # behind the end
  c.data.copy = c.data.get_ref("channels")
  return c
"""


def test_comments_behind_and_above():
  assert configs.keys(SOURCE) == [
    ("data", "", "a section"),
    ("data.size", "8", "pixels"),
    ("data.kind", '"a#b"', "one | two | three"),
    ("data.bare", "0", ""),
    ("data.far", "(\n    1,\n    2,\n  )", "behind the end"),
    ("data.copy", "config.data.channels", ""),
  ]
