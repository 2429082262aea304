import jax
import numpy as np

from jaxdiff import optim, sample, tasks
from jaxdiff.types import NULL_LABEL
from tests import small


def made(*overrides):
  config = small.config("dit", *overrides)
  task = tasks.make(config, optim.make_optimizer(config.optim, 6))
  return config, task, tasks.initial_state(config, task)


def test_labels_are_balanced_or_as_asked_for():
  assert sample.labels(small.config("dit"), 25).tolist() == [i % 10 for i in range(25)]
  assert sample.labels(small.config("dit", "sample.labels=4,2"), 5).tolist() == [4, 2, 4, 2, 4]
  unconditional = small.config("unet", "model.num_classes=0")
  assert sample.labels(unconditional, 3).tolist() == [NULL_LABEL] * 3


def test_another_guidance_label_or_seed_does_not_trace_again():
  config, task, state = made()
  traces = []

  def counted(params, state):
    traces.append(1)
    return task.denoiser(params, state)

  draw = sample.make_draw(config, task._replace(denoiser=counted), lambda rows: rows)
  index, label = np.arange(4), np.arange(4)
  draw(state, index, label)
  for key, value in (("guidance", 3.0), ("seed", 5)):
    config.sample[key] = value
    draw(state, index + 4, label[::-1])
  assert len(traces) == 1


def test_noise_alone_is_drawn_from_a_network_that_says_nothing():
  """A fresh DiT outputs v = 0, x = alpha z: images are noise, different for every index, the same for every label."""
  config, task, state = made("sample.clip=False")
  draw = sample.make_draw(config, task, lambda rows: rows)
  one = draw(state, np.arange(4), np.zeros(4, int))
  other = draw(state, np.arange(4), np.ones(4, int))
  assert (one == other).all()
  assert len({image.tobytes() for image in one}) == 4


def test_images_are_placed_over_four_devices_and_stay_the_same():
  from jaxdiff import parallel

  config, task, _ = made()
  strategy = parallel.mesh(config.parallel, 8)
  state = strategy.init(lambda: tasks.initial_state(config, task))
  alone = jax.device_put(jax.device_get(raw(state)), jax.devices()[0])
  index, label = np.arange(8), np.arange(8)
  spread = sample.make_draw(config, task, strategy.place_rows)(state, index, label)
  single = sample.make_draw(config, task, lambda rows: rows)(alone, index, label)
  assert np.abs(spread.astype(int) - single.astype(int)).max() <= 1


def raw(state):
  """Without the typed key, which does not go through the host; sampling does not use it."""
  return state.replace(rng=None)


def test_the_raw_parameters_can_be_asked_for():
  config, task, state = made()
  perturbed = state.replace(params=jax.tree.map(lambda p: p + 0.05, state.params))
  averaged = sample.make_draw(config, task, lambda rows: rows)(perturbed, np.arange(4), np.arange(4))
  config.sample.ema = False
  current = sample.make_draw(config, task, lambda rows: rows)(perturbed, np.arange(4), np.arange(4))
  assert (averaged != current).any()
