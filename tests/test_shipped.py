"""The models in checkpoints/: each is small, is read as it lies there, and is as good as its card says."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxdiff import configuration, data
from jaxdiff.errors import UserError
from jaxdiff.evaluation import features
from jaxdiff.main import main

FOLDER = Path(__file__).resolve().parent.parent / "checkpoints"
MODELS = {card.parent.name: card.parent for card in sorted(FOLDER.glob("*/README.md"))}
KEPT = {"README.md", "config.json", "model.safetensors"}
PROMISED = re.compile(r"^\| class accuracy[^|]*\| ([0-9.]+)% \|", re.MULTILINE)
JUDGES = {"digits": "digits_judge", "idx": "fashion_mnist_judge"}
NUM = 200


def config_of(name):
  return configuration.of_run(MODELS[name])


CLASSIFIERS = [name for name in MODELS if config_of(name).task == "classifier"]
DRAWING = [pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name not in CLASSIFIERS]


def promised(name):
  """The share that a card says are taken for their class."""
  found = PROMISED.search((MODELS[name] / "README.md").read_text())
  assert found, f"the card of {name} has no row 'class accuracy'"
  return float(found[1]) / 100


def test_there_are_models_and_they_are_small():
  assert MODELS
  sizes = {name: (folder / "model.safetensors").stat().st_size / 1e6 for name, folder in MODELS.items()}
  assert max(sizes.values()) < 12 and sum(sizes.values()) < 40, sizes


@pytest.mark.parametrize("name", MODELS)
def test_a_card_says_what_one_has_to_know(name):
  folder = MODELS[name]
  assert {path.name for path in folder.iterdir()} >= KEPT
  card = (folder / "README.md").read_text()
  for heading in ("| config |", "| commit |", "| data |", "| licence |", "| training |", "## Limits"):
    assert heading in card, heading
  for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card):
    assert (folder / picture).is_file(), picture
  training = re.search(r"^\| training \|.*$", card, re.MULTILINE)[0]
  assert re.search(r"\d (s|min) (on|of) ", training), f"no training time in {training!r}"
  assert re.search(r"^## Figures\n.*?^\| class accuracy", card, re.MULTILINE | re.DOTALL)
  assert config_of(name).export.dtype in ("float16", "bfloat16")


@pytest.mark.parametrize("name", DRAWING)
def test_it_draws_as_well_as_its_card_says(name, tmp_path):
  config = config_of(name)
  if config.task == "controlnet":
    images_of(config)  # whose hints are drawn by
  for kept in ("config.json", "model.safetensors"):
    shutil.copy(MODELS[name] / kept, tmp_path)
  asked = [f"--config.sample.num={NUM}", f"--config.sample.steps={config.sample.only_steps or 25}"]
  assert main(["--mode", "sample", "--workdir", str(tmp_path), *asked]) == 0
  drawn = np.load(tmp_path / "samples.npz", allow_pickle=False)
  judge = JUDGES[config.data.source.partition(":")[0]]
  agree(share_recognised(judge, drawn["arr_0"], drawn["arr_1"]), promised(name))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_recognises_as_much_as_its_card_says(name):
  """Of images that it was not trained on."""
  config = config_of(name)
  batch = data.examples(images_of(config), config.data, np.arange(NUM))
  agree(share_recognised(name, batch["image"], batch["label"]), promised(name))


def images_of(config):
  """The images that were kept out of a training; where they are not on this machine the test is skipped."""
  try:
    return data.load(config.data.source, config.data.heldout)
  except UserError as error:
    pytest.skip(str(error))


def share_recognised(judge, images, labels):
  seen = features.load(f"classifier:{MODELS[judge]}").apply(images)
  return (seen.logits.argmax(-1) == labels).mean()


def agree(share, expected):
  """Within three standard deviations of a share of NUM."""
  assert abs(share - expected) <= 3 * math.sqrt(max(expected * (1 - expected), 1 / NUM) / NUM)
