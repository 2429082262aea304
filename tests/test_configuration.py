import json

import jax.numpy as jnp
import pytest

from jaxdiff import configuration
from jaxdiff.diffusion import losses, samplers, schedules
from jaxdiff.errors import UserError

DIT = "configs/dit_cfg.py"


@pytest.fixture
def config():
  return configuration.load(DIT)


@pytest.mark.parametrize(
  "spec",
  [
    f"configs/{file}_cfg.py:{preset}"
    for file in ("dit", "unet")
    for preset in ("", "digits", "fashion_mnist", "cifar10", "imagenet64")
  ]
  + [f"{DIT}:imagenet256_latent_xl2"],
)
def test_every_preset_loads_and_is_locked(spec):
  config = configuration.load(spec)
  file, preset = spec.split("/")[1].split("_cfg.py:")
  assert config.name == f"{file}_{preset or 'digits'}"
  with pytest.raises(AttributeError):
    config.new_key = 1


@pytest.mark.parametrize(
  ("argument", "key", "value"),
  [
    ("--config.train.steps=500", "train.steps", 500),
    ("--config.optim.learning_rate=3e-4", "optim.learning_rate", 3e-4),
    ("--config.optim.learning_rate=1", "optim.learning_rate", 1.0),
    ("--config.data.random_flip=True", "data.random_flip", True),
    ("--config.sample.ema=false", "sample.ema", False),
    ("--config.sample.labels=0,1,2", "sample.labels", (0, 1, 2)),
    ("--config.sample.labels=3", "sample.labels", (3,)),
    ("--config.sample.guidance_interval=0.2,5", "sample.guidance_interval", (0.2, 5.0)),
    ("--config.sample.labels=(4, 5)", "sample.labels", (4, 5)),
    ("--config.data.source=folder:/a=b", "data.source", "folder:/a=b"),
    ("--config.seed=7", "seed", 7),
  ],
)
def test_overrides_take_the_type_of_what_they_replace(config, argument, key, value):
  configuration.override(config, [argument])
  got = configuration.flatten(config)[key]
  assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.model.widht=3", "there is no config.model.widht. Did you mean config.model.width?"),
    ("--config.trian.steps=3", "Did you mean config.train.steps?"),
    ("--config.train.steps=abc", "config.train.steps takes a whole number (now 1800), not 'abc'."),
    ("--config.train.steps=2.5", "config.train.steps takes a whole number"),
    ("--config.sample.ema=maybe", "config.sample.ema takes true or false (now True), not 'maybe'."),
    ("--config.sample.labels=a,b", "config.sample.labels takes a list as in 0,1,2"),
    ("--config.optim.learning_rate=fast", "config.optim.learning_rate takes a number"),
    ("--config.model=3", "config.model is a section, not a value. It holds model."),
    ("--config.train.steps", "Overrides are written --config.train.steps=500."),
    ("--steps=3", "cannot read the argument '--steps=3'"),
    ("stray", "cannot read the argument 'stray'"),
    ("--config.train.keep_checkpoints=0", "config.train.keep_checkpoints is 0; it must be at least 1."),
    ("--config.train.checkpoint_every=0", "config.train.checkpoint_every is 0; it must be at least 1."),
    ("--config.train.log_every=0", "config.train.log_every is 0"),
    ("--config.train.keep_every=-1", "config.train.keep_every is -1; it must be at least 0."),
    ("--config.optim.accumulate_steps=0", "config.optim.accumulate_steps is 0"),
    ("--config.optim.ema_decay=1.5", "config.optim.ema_decay is 1.5; it must be from 0 to 1."),
    ("--config.optim.ema_decay=nan", "config.optim.ema_decay is nan"),
    ("--config.model.heads=0", "config.model.heads is 0; it must be at least 1."),
    ("--config.model.patch_size=0", "config.model.patch_size is 0; it must be at least 1."),
    ("--config.model.depth=-1", "config.model.depth is -1; it must be at least 1."),
    ("--config.seed=-1", "config.seed is -1; it must be from 0 to 2147483647."),
  ],
)
def test_a_wrong_override_is_one_line_that_names_the_right_one(config, argument, message):
  before = configuration.to_json(config)
  with pytest.raises(UserError) as told:
    configuration.override(config, [argument])
  assert message in str(told.value) and "\n" not in str(told.value)
  assert configuration.to_json(config) == before


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    (
      "configs/dit.py",
      "there is no config file 'configs/dit.py' (--config). Did you mean configs/dit_cfg.py?",
    ),
    (f"{DIT}:fashion", "unknown preset 'fashion'. Did you mean 'fashion_mnist'? Known: cifar10, digits"),
    ("jaxdiff/errors.py", "has no get_config(preset) function"),
    ("README.md", "is not a Python file"),
  ],
)
def test_a_wrong_config_file_is_told(spec, message):
  with pytest.raises(UserError) as told:
    configuration.load(spec)
  assert message in str(told.value)


def test_the_text_of_a_config_is_json_whatever_its_numbers_and_reads_back(config):
  config.sample.guidance_interval = (-float("inf"), float("inf"))

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  text = configuration.to_json(config)
  assert json.loads(text, parse_constant=refuse)["sample"]["guidance_interval"] == ["-inf", "inf"]
  assert configuration.from_json(text).to_dict() == config.to_dict()


def test_linked_values_follow_each_other(config):
  configuration.override(config, ["--config.data.channels=3"])
  assert config.model.channels == 3


def test_json_round_trip_keeps_every_value_and_type(config):
  configuration.override(config, ["--config.sample.labels=1,2"])
  again = configuration.from_json(configuration.to_json(config))
  before, after = configuration.flatten(config), configuration.flatten(again)
  assert before == after
  assert {k: type(v) for k, v in before.items()} == {k: type(v) for k, v in after.items()}
  configuration.override(again, ["--config.sample.labels=5"])
  with pytest.raises(UserError):
    configuration.override(again, ["--config.nothing=5"])


def test_differences_name_keys_and_both_values(config):
  other = configuration.load(DIT)
  configuration.override(other, ["--config.optim.ema_decay=0.9", "--config.sample.num=3", "--config.seed=4"])
  assert configuration.differences(config, other, ignore=("sample",)) == [
    "optim.ema_decay: 0.995 -> 0.9",
    "seed: 0 -> 4",
  ]
  assert configuration.differences(config, configuration.from_json(configuration.to_json(config))) == []


def test_specs_are_calls_with_checked_names():
  assert configuration.parse_call("ddim", samplers.SAMPLERS, "sampler") == ("ddim", {})
  assert configuration.parse_call("ddim(eta=0.5)", samplers.SAMPLERS, "sampler") == ("ddim", {"eta": 0.5})
  words = configuration.parse_call("ddpm(variance=learned)", samplers.SAMPLERS, "sampler")
  assert words == ("ddpm", {"variance": "learned"})
  weighting = configuration.build("min_snr(gamma=2)", losses.WEIGHTINGS, "weighting")
  assert float(weighting(schedules.cosine(), jnp.float32(0.25))) == 2  # SNR 5.8
  for spec, message in (
    ("dimm", "unknown sampler 'dimm'. Did you mean 'ddim'? Known: ddim, ddpm, "),
    ("ddim(0.5)", "cannot read the sampler 'ddim(0.5)'"),
    ("ddim(eta=open('x'))", "cannot read the sampler"),
    ("os.remove(path='x')", "cannot read the sampler"),
    ("ddim(eta=", "cannot read the sampler"),
    ("ddim(eta=half)", "eta of sampler 'ddim' takes a number (by default 0.0), not 'half'."),
    ("ddpm(variance=1)", "variance of sampler 'ddpm' takes a word (by default 'fixed_small'), not 1."),
    ("ddim(eta=None)", "eta of sampler 'ddim' takes a number (by default 0.0), not None."),
    ("ddim(eta=True)", "eta of sampler 'ddim' takes a number"),
    ("ddim(teta=1)", "unknown argument of sampler 'ddim': 'teta'. Did you mean 'eta'?"),
  ):
    with pytest.raises(UserError) as told:
      configuration.parse_call(spec, samplers.SAMPLERS, "sampler")
    assert message in str(told.value)


@pytest.mark.parametrize(("then", "now"), [(False, "none"), (True, "full"), ("dots", "dots")])
def test_a_value_of_an_older_version_is_read_as_what_it_is_today(then, now):
  saved = {"model": {"remat": then, "depth": 2}}
  assert configuration.completed(saved)["model"] == {"remat": now, "depth": 2}
  assert saved["model"]["remat"] is then


def test_a_config_of_an_older_version_is_completed_and_its_values_stay(tmp_path):
  now = configuration.load("configs/dit_cfg.py")
  old = now.to_dict()
  old["seed"], old["data"]["threads"] = 7, 2
  del old["data"]["hint"], old["sample"]["guess"]
  (tmp_path / "config.json").write_text(json.dumps(old))
  completed = configuration.of_run(tmp_path)
  assert (completed.seed, completed.data.threads, completed.data.hint, completed.sample.guess) == (
    7,
    2,
    "",
    False,
  )
  assert configuration.differences(completed.to_dict(), now.to_dict()) == [
    "data.threads: 2 -> 4",
    "seed: 7 -> 0",
  ]


def test_ranges_are_of_keys_that_configs_have():
  every = [
    configuration.load(f"configs/{name}_cfg.py") for name in ("dit", "controlnet", "distill", "classifier")
  ]
  known = set().union(*(configuration.flatten(config) for config in every))
  assert set(configuration.RANGES) <= known


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"task": "denoise", "name"', "config.json cannot be read"),
    ("[1, 2]", "config.json cannot be read"),
    ('{"architectures": ["UNet"]}', "config.json is not the config of a run: it has no 'task'"),
  ],
)
def test_a_config_that_no_run_has_left_is_told(tmp_path, text, message):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError) as told:
    configuration.of_run(tmp_path)
  assert message in str(told.value) and "\n" not in str(told.value)
