"""The task of a control branch: what is trained, what is frozen, and what a hint is worth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import optim, tasks
from jaxdiff.errors import UserError
from jaxdiff.models import controlnet
from jaxdiff.tasks import denoise
from jaxdiff.tasks.controlnet import drop_hints
from jaxdiff.train_step import make_train_step
from jaxdiff.types import NULL_LABEL, Cond
from tests import small
from tests.models.small import jit

BATCH = 8


def config_of(name, *overrides):
  """The config of a tiny branch on a tiny base of digits."""
  c, base = small.config("controlnet"), small.config(name)
  with c.unlocked():
    c.model = base.model
    c.data.update({"source": "digits", "image_size": 8, "channels": 1})
  small.configuration.override(c, [f"--config.{line}" for line in overrides])
  return c


def batch():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (BATCH, 8, 8, 1), np.uint8)
  index = np.arange(BATCH, dtype=np.uint32)
  return {"image": image, "label": index.astype(np.int32), "index": index, "hint": image // 128 * 255}


@pytest.fixture(scope="module", params=["dit", "unet"])
def made(request):
  """(config, tx, task, a branch on a base of no particular parameters, the base's task and state)."""
  base = small.config(request.param)
  base_task, base_state = small.made(base)
  base_state = small.woken(base_state)
  c = config_of(request.param)
  tx = tasks.optimizer(c)
  task = tasks.make(c, tx)
  start = jit(lambda params: task.adopt(task.init(jax.random.key(0), batch()), params))
  return c, tx, task, start(base_state.params), base_task, base_state


@pytest.fixture(scope="module")
def trained(made):
  """The state after three steps, and the metrics of the last."""
  _, tx, task, state, _, _ = made
  step = jit(make_train_step(task, tx))
  for _ in range(3):
    state, metrics = step(state, batch())
  return state, metrics


def ask(label=3, **more):
  z = jax.random.normal(jax.random.key(1), (BATCH, 8, 8, 1))
  hint = jnp.asarray(batch()["hint"], jnp.float32) / 255
  return z, jnp.linspace(0.1, 0.9, BATCH), Cond(jnp.full(BATCH, label), **({"hint": hint} | more))


def says(task, state, inputs, params=None):
  given = state.params if params is None else params
  return jit(lambda p, state, inputs: task.denoiser(p, state)(*inputs).x)(given, state, inputs)


def equal(one, other):
  return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_a_fresh_branch_leaves_the_denoiser_as_it_is(made):
  _, _, task, state, base_task, base_state = made
  assert np.array_equal(says(task, state, ask()), says(base_task, base_state, ask()))


def test_training_moves_the_branch_and_no_bit_of_the_base(made, trained):
  _, _, _, start, _, base_state = made
  state, _ = trained
  assert equal(state.base_params, base_state.params)
  assert not equal(state.params, start.params)
  norms = controlnet.zero_norms(state.params["control"])
  assert all(float(norm) > 0 for norm in norms.values())


def test_the_optimizer_and_the_average_hold_the_branch_alone(trained):
  state, _ = trained
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  scalars = 8
  assert size(state.opt_state) <= 3 * size(state.params) + scalars
  assert size(optax.tree.get(state.opt_state, "ema_params")) == size(state.params)


def test_gradients_of_the_base_are_never_formed(made):
  """Differentiating in the base's parameters too costs about one more forward pass of it: the train step does not pay that."""
  _, tx, task, state, base_task, base_state = made

  def cost(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]

  def both(params, base_params):
    return task.loss(params, state.replace(base_params=base_params), batch(), jax.random.key(0))[0]

  alone = cost(jax.grad(both), state.params, state.base_params)
  together = cost(jax.grad(both, argnums=(0, 1)), state.params, state.base_params)
  forward = cost(lambda p: base_task.denoiser(p, base_state)(*ask()).x, base_state.params)
  assert together - alone > 0.8 * forward
  step = cost(make_train_step(task, tx), state, batch())
  assert step - alone < 0.5 * forward  # clipping, Adam and the average


def test_the_log_tells_how_far_each_zero_layer_has_come(made, trained):
  _, metrics = trained
  names = {name for name in metrics if name.startswith("zero/")}
  assert names == {f"zero/{name}" for name in controlnet.zero_norms(trained[0].params["control"])}
  assert all(float(metrics[name]) > 0 for name in names)


def test_half_of_the_labels_are_dropped_and_all_hints_stay(made, monkeypatch):
  c, tx, *_ = made
  seen = []
  from_network = denoise.from_network
  monkeypatch.setattr(
    denoise,
    "from_network",
    lambda config, init, network: seen.append(network) or from_network(config, init, network),
  )
  tasks.make(c, tx)
  many = {
    "label": jnp.full(4000, 3),
    "index": jnp.arange(4000, dtype=jnp.uint32),
    "hint": jnp.full((4000, 1, 1, 1), 255, jnp.uint8),
  }
  cond = seen[0].condition(many, jax.random.key(0))
  assert float((cond.label == NULL_LABEL).mean()) == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
  assert (cond.hint == 1).all()


def test_hints_are_dropped_apart_from_labels():
  index = jnp.arange(4000, dtype=jnp.uint32)
  hint = drop_hints(jnp.ones((4000, 2, 2, 1)), 0.25, jax.random.key(0), index)
  dropped = (hint == 0).all((1, 2, 3))
  assert float(dropped.mean()) == pytest.approx(0.25, abs=4 * (0.1875 / 4000) ** 0.5)
  assert ((hint == 1).all((1, 2, 3)) | dropped).all()


def test_strength_zero_is_the_base_and_strengths_of_several_branches_add_up(made, trained):
  _, _, task, _, base_task, base_state = made
  state, _ = trained
  count = controlnet.num_controls(state.params["control"])
  inputs = ask()
  full, hint = says(task, state, inputs), inputs[2].hint
  silent = says(task, state, ask(hint_scale=jnp.zeros((BATCH, count))))
  assert np.array_equal(silent, says(base_task, base_state, inputs))
  assert not np.allclose(full, silent, atol=1e-5)
  pair = {"control": (state.params["control"], state.params["control"])}
  scale = jnp.full((BATCH, count), 0.25)
  mixed = says(task, state, ask(hint=(hint, hint), hint_scale=(scale, 3 * scale)), pair)
  np.testing.assert_allclose(mixed, full, atol=1e-5)


def test_the_unlocked_decoder_of_a_unet_is_trained_and_the_base_is_not():
  base_state = small.woken(small.made(small.config("unet"))[1])
  c = config_of("unet", "control.unlock_decoder=True")
  tx = tasks.optimizer(c)
  task = tasks.make(c, tx)
  state = jit(lambda params: task.adopt(task.init(jax.random.key(0), batch()), params))(base_state.params)
  assert equal(state.params["unlocked"], {k: base_state.params[k] for k in ("decoder", "norm", "out")})
  after, _ = jit(make_train_step(task, tx))(state, batch())
  assert equal(after.base_params, base_state.params)
  assert not equal(after.params["unlocked"]["decoder"], state.params["unlocked"]["decoder"])


@pytest.mark.parametrize(
  ("override", "told"),
  [
    ("control.blocks=0", "config.control.blocks is 0; the base has 2 blocks to copy. Use 1 to 2"),
    ("control.blocks=3", "config.control.blocks is 3; the base has 2 blocks to copy"),
    ("control.unlock_decoder=True", "a DiT has no decoder"),
  ],
)
def test_a_branch_that_cannot_be_is_refused(override, told):
  c = config_of("dit", override)
  with pytest.raises(UserError, match=told):
    tasks.make(c, optim.make_optimizer(c.optim, 1))
