"""Tiny configs for tests: the real ones, with a network and a run that take seconds."""

import contextlib

import jax
import numpy as np
import optax

from jaxdiff import checkpoints, configuration, tasks


def config(name="dit", *overrides):
  """configs/<name>_cfg.py at digits, shrunk; `overrides` as on the command line, without the dashes."""
  c = configuration.load(f"configs/{name}_cfg.py")
  configuration.override(
    c, [f"--{line}" for line in arguments(name)] + [f"--config.{line}" for line in overrides]
  )
  return c


def made(c):
  """(task, initial state) with the config's optimizer, compiled without optimisation: a UNet drawn operation by operation takes half a minute."""
  task = tasks.make(c, tasks.optimizer(c))
  fast = jax.jit(lambda: tasks.initial_state(c, task), compiler_options={"xla_backend_optimization_level": 0})
  return task, fast()


def woken(state):
  """A fresh DiT says nothing and a fresh classifier little, as their branches end in zeros; moved, all parameters count."""
  rng = np.random.default_rng(9)
  moved = lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32)
  return state.replace(params=jax.tree.map(moved, state.params))


def run(workdir, name="dit", *overrides):
  """Leaves a run of one checkpoint, step 6, in a workdir without training: parameters drawn at random.  Returns its config."""
  c = config(name, *overrides)
  state = woken(made(c)[1])
  averaged = optax.tree.set(state.opt_state, ema_params=state.params)
  state = state.replace(step=np.int32(6), opt_state=averaged)
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
    "controlnet": ("control.blocks=1",),
    "distill": ("distill.start_steps=4", "distill.updates=2", "distill.updates_last=3"),
    "classifier": ("model.width=8", "model.num_blocks=1", "model.head_channels=8", "model.channel_mults=1"),
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
