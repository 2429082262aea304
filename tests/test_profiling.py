"""config.profile: which steps a trace holds, and that a run without one is untouched."""

from __future__ import annotations

import gzip
import json
import logging
import types

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import profiling
from jaxdiff.errors import UserError
from jaxdiff.main import main
from tests import small


def asked(steps=0, after=0, folder=""):
  return types.SimpleNamespace(steps=steps, after=after, folder=str(folder))


def take(step, number):
  state = jnp.zeros(())
  for _ in range(number):
    state, _ = step(state, None)
  return float(state)


def steps_of(folder):
  """The numbers of the steps that a trace in Chrome's format names, which is what Perfetto opens."""
  (path,) = folder.rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  return sorted({int(e["args"]["step_num"]) for e in events if e.get("name") == "train" and "args" in e})


@jax.jit
def step(state, batch):
  del batch
  return state + 1, {}


def test_the_steps_after_warm_up_are_recorded(tmp_path):
  with profiling.traced(step, asked(steps=2, after=3), tmp_path, start=100) as traced:
    assert take(traced, 8) == 8
  assert steps_of(tmp_path / "profile") == [104, 105]
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))  # TensorBoard's


def test_a_run_that_stops_in_between_leaves_what_it_has(tmp_path):
  with profiling.traced(step, asked(steps=50, folder=tmp_path / "here"), tmp_path, start=0) as traced:
    take(traced, 3)
  assert steps_of(tmp_path / "here") == [1, 2, 3]


def test_a_run_too_short_for_a_trace_says_so(tmp_path, caplog):
  caplog.set_level(logging.WARNING, "jaxdiff")
  with profiling.traced(step, asked(steps=2, after=3), tmp_path, start=100) as traced:
    take(traced, 3)
  assert "No step was traced: the run ended after 3 of the 3 steps" in caplog.text
  assert not list(tmp_path.iterdir())


def test_a_run_traces_its_steps(tmp_path):
  own = ("--config.train.sample_every=0", "--config.profile.steps=2", "--config.profile.after=3")
  arguments = [f"--{line}" for line in small.arguments("dit")]
  assert main(["--config", "configs/dit_cfg.py", "--workdir", str(tmp_path), *arguments, *own]) == 0
  assert steps_of(tmp_path / "profile") == [4, 5]


def test_without_it_the_step_is_the_step(tmp_path):
  with profiling.traced(step, asked(), tmp_path, start=0) as traced:
    assert traced is step
  assert not list(tmp_path.iterdir())


def test_steps_that_cannot_be(tmp_path):
  message, cannot_be = r"config\.profile\.steps is -1", profiling.traced(step, asked(steps=-1), tmp_path, 0)
  with pytest.raises(UserError, match=message), cannot_be:
    pass
