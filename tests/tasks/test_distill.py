"""The task of distillation: what stays within a round, what happens between rounds, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import optim, parallel, starts, tasks
from jaxdiff.errors import UserError
from jaxdiff.tasks import distill
from jaxdiff.train_step import make_train_step
from jaxdiff.types import Cond
from tests import small
from tests.models.small import jit

BATCH = 8


def config_of(*overrides, name="dit"):
  """The config of a tiny distillation of a tiny network of digits: 4, 2, 1 steps."""
  c, teacher = small.config("distill", "optim.warmup_steps=0"), small.config(name)
  with c.unlocked():
    c.model = teacher.model
  small.configuration.override(c, [f"--config.{line}" for line in overrides])
  if "train.steps" not in " ".join(overrides):
    c.train.steps = sum(tasks.stages(c))
  return c


def batch():
  image = np.random.default_rng(0).integers(0, 256, (BATCH, 8, 8, 1), np.uint8)
  index = np.arange(BATCH, dtype=np.uint32)
  return {"image": image, "label": index.astype(np.int32), "index": index}


def make(c):
  tx = tasks.optimizer(c)
  return tx, tasks.make(c, tx)


@pytest.fixture(scope="module")
def made():
  """(config, tx, task, first state on a teacher of no particular parameters)."""
  c = config_of()
  tx, task = make(c)
  teacher = small.woken(small.made(small.config("dit"))[1]).params
  start = jit(lambda params: task.adopt(task.init(jax.random.key(0), batch()), params))
  return c, tx, task, start(teacher)


@pytest.fixture(scope="module")
def trained(made):
  """[state after each step], over the end of the first round; the step is compiled once."""
  _, tx, task, state = made
  traces = []

  def counted(state, batch):
    traces.append(1)
    return make_train_step(task, tx)(state, batch)

  step, advance, states = jit(counted), jit(task.advance), [state]
  for number in range(1, 6):
    state, _ = step(state, batch())
    states.append(state)
    if number in task.stages:
      state = advance(state)
      states.append(state)
  return states, len(traces)


def equal(one, other):
  return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_rounds_halve_down_to_the_last_and_the_last_two_are_longer():
  c = small.config("distill", "distill.start_steps=16", "distill.updates=5", "distill.updates_last=9")
  assert distill.rounds(c.distill) == ((16, 5), (8, 5), (4, 5), (2, 9), (1, 9))
  assert tasks.stages(c) == (5, 5, 5, 9, 9)
  small.configuration.override(c, ["--config.distill.end_steps=4"])
  assert distill.rounds(c.distill) == ((16, 5), (8, 5), (4, 5))


def test_a_task_of_one_stage_has_its_train_steps():
  assert tasks.stages(small.config("dit")) == (6,)


def test_the_teacher_does_not_move_within_a_round(made, trained):
  states, _ = trained
  first = states[0]
  for state in states[1:3]:
    assert equal(state.teacher_params, first.teacher_params)
    assert not equal(state.params, first.params)
    assert int(state.num_steps) == 4


def test_after_a_round_the_averaged_student_teaches_and_all_begins_anew(trained):
  states, _ = trained
  before, after = states[2], states[3]
  averaged = optim.ema_params(before)
  assert equal(after.teacher_params, averaged) and equal(after.params, averaged)
  assert equal(optim.ema_params(after), averaged)
  assert int(after.num_steps) == 2 and int(after.step) == int(before.step)
  adam = optax.tree.get(after.opt_state, "mu")
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(adam))


def test_a_round_has_its_whole_learning_rate_also_where_steps_were_skipped(made, trained):
  """Of the two updates of the first round one was skipped: the second round begins with update 2, not with the end of the first."""
  _, _, task, _ = made
  of_one, of_two = trained[0][1:3]
  is_schedule = lambda node: isinstance(node, optim.ScheduledState)
  pick = lambda one, two: one if is_schedule(one) else two
  skipped = of_two.replace(
    opt_state=jax.tree.map(pick, of_one.opt_state, of_two.opt_state, is_leaf=is_schedule)
  )
  rates = [node for node in jax.tree.leaves(skipped.opt_state, is_leaf=is_schedule) if is_schedule(node)]
  assert [int(rate.count) for rate in rates] == [1]
  after = jit(task.advance)(skipped)
  (rate,) = [node for node in jax.tree.leaves(after.opt_state, is_leaf=is_schedule) if is_schedule(node)]
  assert int(rate.count) == 2 and float(rate.learning_rate) == float(rates[0].learning_rate)
  assert equal(optim.ema_params(after), optim.ema_params(trained[0][3]))


def test_the_whole_run_compiles_one_step(trained):
  _, traces = trained
  assert traces == 1


def test_the_learning_rate_falls_to_zero_in_each_round(made):
  c = made[0]
  rate = optim.learning_rate(c.optim, *tasks.stages(c))
  rates = [float(rate(n)) for n in range(8)]
  peak = c.optim.learning_rate
  np.testing.assert_allclose(
    rates, [peak, peak / 2, peak, 2 * peak / 3, peak / 3, peak, 2 * peak / 3, peak / 3], rtol=1e-5
  )


def test_the_rate_goes_on_where_the_moments_begin_anew(trained):
  states, _ = trained
  schedules = [
    [
      node
      for node in jax.tree.leaves(s.opt_state, is_leaf=lambda n: isinstance(n, optim.ScheduledState))
      if isinstance(node, optim.ScheduledState)
    ]
    for s in states
  ]
  assert [int(found[0].count) for found in schedules] == [0, 1, 2, 2, 3, 4, 5, 5]


def test_a_student_that_says_what_its_teacher_teaches_has_no_loss(made, monkeypatch):
  """The target is what the student already says: the loss is zero, whatever the weights."""
  _, _, task, state = made

  def already(schedule, teacher, z, i, num_steps, cond):
    return teacher(z, (i + 1) / num_steps, cond).x

  monkeypatch.setattr(distill.distillation, "target", already)
  value, _ = jit(lambda state: task.loss(state.params, state, batch(), jax.random.key(0)))(state)
  assert float(value) < 1e-9
  moved = state.replace(params=jax.tree.map(lambda p: p + 0.01, state.params))
  assert float(jit(lambda state: task.loss(state.params, state, batch(), jax.random.key(0)))(moved)[0]) > 1e-5


def test_a_network_that_predicts_x_and_eps_teaches_and_learns():
  c = config_of("diffusion.parameterization=x_and_eps")
  _, task = make(c)
  state = jit(lambda: task.init(jax.random.key(0), batch()))()
  assert state.params["final"]["out"]["kernel"].shape[-1] == 2 * c.model.patch_size**2
  loss, gradient = jit(jax.value_and_grad(lambda p: task.loss(p, state, batch(), jax.random.key(1))[0]))(
    small.woken(state).params
  )
  assert 0 < float(loss) < 10 and float(optax.tree.norm(gradient["final"])) > 0


def test_a_guided_teacher_is_guided_in_the_first_round_alone(monkeypatch):
  c = config_of("distill.guidance=3.0")
  _, task = make(c)
  seen = []

  def target(schedule, teacher, z, i, num_steps, cond):
    seen.append(teacher(z, (i + 1) / num_steps, cond).x)
    return seen[-1]

  monkeypatch.setattr(distill.distillation, "target", target)
  teacher = small.woken(small.made(small.config("dit"))[1]).params
  state = jit(lambda params: task.adopt(task.init(jax.random.key(0), batch()), params))(teacher)

  @jit
  def taught(state):
    task.loss(state.params, state, batch(), jax.random.key(0))
    return seen[-1]

  first, later = taught(state), taught(state.replace(num_steps=jnp.int32(2)))
  plain_config = config_of()
  _, plain = make(plain_config)

  @jit
  def unguided(state):
    plain.loss(state.params, state, batch(), jax.random.key(0))
    return seen[-1]

  np.testing.assert_allclose(later, unguided(state.replace(num_steps=jnp.int32(2))), atol=1e-5)
  assert float(jnp.abs(first - unguided(state)).max()) > 1e-3


@pytest.mark.parametrize("strategy", ["mesh", "pmap"])
def test_every_strategy_advances_the_same(made, strategy):
  c, _, task, state = made
  under = parallel.STRATEGIES[strategy](c.parallel, BATCH)
  alone = jit(task.advance)(state)
  placed = under.place_state(jax.tree.map(np.asarray, state.replace(rng=jax.random.key_data(state.rng))))
  advanced = under.fetch(under.advance(task.advance, placed))
  assert equal(advanced.replace(rng=0), alone.replace(rng=0))


@pytest.mark.parametrize(
  ("override", "told"),
  [
    ("distill.start_steps=6", "does not come to config.distill.end_steps=1. Use powers of two"),
    ("distill.end_steps=3", "does not come to config.distill.end_steps=3"),
    ("distill.updates=0", "config.distill.updates is 0; a round has at least 1 update"),
    ("train.steps=5", "config.train.steps is 5, but the rounds of config.distill take 8"),
    ("diffusion.parameterization=eps", "the teacher predicts eps .* Train a teacher that predicts v"),
    ("model.learn_sigma=True", "use a teacher with config.model.learn_sigma=False"),
  ],
)
def test_a_distillation_that_cannot_be_is_refused(override, told):
  with pytest.raises(UserError, match=told):
    make(config_of(override))


def test_the_teachers_own_data_and_process_are_taken_and_the_rounds_counted(tmp_path):
  small.run(tmp_path, "dit", "diffusion.schedule=sigmoid", "diffusion.label_dropout=0.2")
  c = small.configuration.load("configs/distill_cfg.py")
  starts.override(c, [f"--config.teacher.workdir={tmp_path}", "--config.distill.start_steps=8"])
  assert c.diffusion.schedule == "sigmoid" and c.diffusion.label_dropout == 0.2
  assert c.diffusion.weighting == "truncated_snr"
  assert c.train.steps == 400 + 400 + 800 + 800


@pytest.fixture(scope="module")
def of_any_scale():
  """(task, first state) of students that take the scale as an input, and their teacher's (task, state)."""
  c = config_of("distill.guidance_range=1.0,4.0")
  with c.unlocked():
    c.model.guidance_range = (1.0, 4.0)
  _, task = make(c)
  teacher_task, teacher = small.made(small.config("dit"))
  teacher = small.woken(teacher)
  start = jit(lambda params: task.adopt(task.init(jax.random.key(0), batch()), params))
  return task, start(teacher.params), teacher_task, teacher


def test_a_student_of_any_scale_begins_as_its_teacher(of_any_scale):
  task, state, teacher_task, teacher = of_any_scale
  z, t = jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jnp.linspace(0.1, 0.9, 4)
  cond = Cond(jnp.arange(4))
  says = lambda task, state, cond: jit(lambda s: task.denoiser(s.params, s)(z, t, cond).x)(state)
  expected = says(teacher_task, teacher, cond)
  for scale in (None, jnp.full(4, 3.0)):
    np.testing.assert_allclose(says(task, state, cond.replace(guidance=scale)), expected, atol=1e-6)


def test_each_example_is_guided_by_the_scale_that_the_student_is_told(of_any_scale, monkeypatch):
  task, state, teacher_task, teacher = of_any_scale
  seen = []

  def target(schedule, teach, z, i, num_steps, cond):
    seen.append((z, (i + 1) / num_steps, cond, teach(z, (i + 1) / num_steps, cond).x))
    return seen[-1][-1]

  monkeypatch.setattr(distill.distillation, "target", target)

  @jit
  def taught(state):
    task.loss(state.params, state, batch(), jax.random.key(0))
    return seen[-1]

  z, t, cond, x = taught(state)
  scales = np.asarray(cond.guidance)
  assert scales.min() >= 1 and scales.max() <= 4 and np.unique(scales).size == BATCH
  ask = lambda label: jit(lambda s: teacher_task.denoiser(s.params, s)(z, t, Cond(label)).x)(teacher)
  labelled, not_labelled = ask(cond.label), ask(jnp.full_like(cond.label, -1))
  weight = scales[:, None, None, None]
  np.testing.assert_allclose(x, weight * labelled + (1 - weight) * not_labelled, atol=1e-4)


def test_what_the_scale_changes_is_learned(of_any_scale):
  task, state, _, _ = of_any_scale
  slopes = jit(jax.grad(lambda p: task.loss(p, state, batch(), jax.random.key(0))[0]))(state.params)
  assert np.asarray(slopes["embedding"]["guidance"]["kernel"]).any()


@pytest.mark.parametrize("override", ["distill.guidance_range=4.0,1.0", "distill.guidance=2.0"])
def test_a_scale_and_a_range_exclude_each_other(override):
  lines = [override] if "range" in override else [override, "distill.guidance_range=1.0,4.0"]
  with pytest.raises(UserError, match="Give a range, as 1,4"):
    make(config_of(*lines))
