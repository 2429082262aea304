"""Tiny configs for tests: the real ones, with a network and a run that take seconds."""

import contextlib

import jax
import numpy as np
import optax

from jaxdiff import checkpoints, configuration, optim, tasks


def config(name="dit", *overrides):
  """configs/<name>_cfg.py at digits, shrunk; `overrides` as on the command line, without the dashes."""
  c = configuration.load(f"configs/{name}_cfg.py")
  configuration.override(
    c, [f"--{line}" for line in arguments(name)] + [f"--config.{line}" for line in overrides]
  )
  return c


def made(c, tx=None):
  """(task, initial state), compiled without optimisation: a UNet drawn operation by operation takes half a minute."""
  task = tasks.make(c, tx or optax.sgd(1.0))
  fast = jax.jit(lambda: tasks.initial_state(c, task), compiler_options={"xla_backend_optimization_level": 0})
  return task, fast()


def run(workdir, name="dit", *overrides):
  """Leaves a run of one checkpoint, step 6, in a workdir without training: parameters drawn at random.  Returns its config."""
  c = config(name, *overrides)
  _, state = made(c, optim.make_optimizer(c.optim, c.train.steps))
  draw = np.random.default_rng(9)
  moved = jax.tree.map(lambda p: p + 0.1 * draw.standard_normal(p.shape, np.float32), state.params)
  state = state.replace(
    step=np.int32(6), params=moved, opt_state=optax.tree.set(state.opt_state, ema_params=moved)
  )
  (workdir / "config.json").write_text(configuration.to_json(c))
  record = {"config": c.to_dict(), "label_names": [str(i) for i in range(c.model.num_classes)], "data": {}}
  with contextlib.closing(checkpoints.open_manager(workdir)) as manager:
    checkpoints.save(manager, 6, state, record)
    checkpoints.finish(manager)
  return c


def arguments(name="dit"):
  """The overrides that make a digits config tiny, as `config.key=value`."""
  model = {
    "dit": ("model.width=16", "model.depth=2", "model.heads=2"),
    "unet": ("model.width=8", "model.num_blocks=1", "model.head_channels=8"),
    "classifier": ("model.width=8", "model.num_blocks=1", "model.head_channels=8"),
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
