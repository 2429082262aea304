"""Tiny configs for tests: the real ones, with a network and a run that take seconds."""

from jaxdiff import configuration


def config(name="dit", *overrides):
  """configs/<name>_cfg.py at digits, shrunk; `overrides` as on the command line, without the dashes."""
  c = configuration.load(f"configs/{name}_cfg.py")
  configuration.override(
    c, [f"--{line}" for line in arguments(name)] + [f"--config.{line}" for line in overrides]
  )
  return c


def arguments(name="dit"):
  """The overrides that make a digits config tiny, as `config.key=value`."""
  model = {
    "dit": ("model.width=16", "model.depth=2", "model.heads=2"),
    "unet": ("model.width=8", "model.num_blocks=1", "model.head_channels=8"),
  }[name]
  run = (
    "train.steps=6",
    "train.batch_size=8",
    "train.log_every=2",
    "train.sample_every=3",
    "train.checkpoint_every=2",
    "optim.warmup_steps=2",
    "optim.ema_start_step=2",
    "sample.num=10",
    "sample.steps=3",
  )
  return tuple(f"config.{line}" for line in (*model, *run))
