import jax
import numpy as np
import pytest

from jaxdiff import draw, sample, tasks
from jaxdiff.data import decode
from jaxdiff.errors import UserError
from jaxdiff.types import NULL_LABEL
from tests import small


def made(*overrides):
  config = small.config("dit", *overrides)
  return config, *small.made(config)


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

  draws = draw.make_draw(config, task._replace(denoiser=counted), lambda rows: rows)
  index, label = np.arange(4), np.arange(4)
  draws(state, index, label)
  for key, value in (("guidance", 3.0), ("seed", 5)):
    config.sample[key] = value
    draws(state, index + 4, label[::-1])
  assert len(traces) == 1


def test_noise_alone_is_drawn_from_a_network_that_says_nothing():
  """A fresh DiT outputs v = 0, x = alpha z: images are noise, different for every index, the same for every label."""
  config, task, state = made("sample.threshold=none")
  draws = draw.make_draw(config, task, lambda rows: rows)
  one = draws(state, np.arange(4), np.zeros(4, int))
  other = draws(state, np.arange(4), np.ones(4, int))
  assert (one == other).all()
  assert len({image.tobytes() for image in one}) == 4


def test_images_are_placed_over_four_devices_and_stay_the_same():
  from jaxdiff import parallel

  config, task, _ = made()
  strategy = parallel.mesh(config.parallel, 8)
  state = strategy.init(lambda: tasks.initial_state(config, task))
  alone = jax.device_put(jax.device_get(raw(state)), jax.devices()[0])
  index, label = np.arange(8), np.arange(8)
  spread = draw.make_draw(config, task, strategy.place_rows)(state, index, label)
  single = draw.make_draw(config, task, lambda rows: rows)(alone, index, label)
  assert np.abs(spread.astype(int) - single.astype(int)).max() <= 1


def raw(state):
  """Without the typed key, which does not go through the host; sampling does not use it."""
  return state.replace(rng=None)


def test_the_raw_parameters_can_be_asked_for():
  config, task, state = made()
  perturbed = state.replace(params=jax.tree.map(lambda p: p + 0.05, state.params))
  averaged = draw.make_draw(config, task, lambda rows: rows)(perturbed, np.arange(4), np.arange(4))
  config.sample.ema = False
  current = draw.make_draw(config, task, lambda rows: rows)(perturbed, np.arange(4), np.arange(4))
  assert (averaged != current).any()


def write(path, image):
  path.write_bytes(decode.encode_png(image))
  return path


def test_an_image_is_started_from_and_a_mask_keeps_the_rest(tmp_path):
  picture = np.kron(np.eye(4, dtype=np.uint8) * 255, np.ones((2, 2), np.uint8))[..., None]
  image = write(tmp_path / "image.png", picture)
  mask = np.zeros((8, 8, 1), np.uint8)
  mask[:4] = 255
  painted = write(tmp_path / "mask.png", mask)
  index = np.arange(4)

  config, task, state = made(f"sample.image={image}", "sample.strength=0.3", "sample.steps=10")
  near = draw.make_draw(config, task, lambda rows: rows)(state, index, index, record=True)
  assert len(near) == 4  # 3 of the 10 steps, and where they start
  config, task, state = made(f"sample.image={image}", f"sample.mask={painted}", "sample.repeats=2")
  images = draw.make_draw(config, task, lambda rows: rows)(state, index, index)
  assert (images[:, 4:] == picture[4:]).all()
  assert (images[:, :4] != picture[:4]).any(axis=(1, 2, 3)).all()


def test_a_number_among_the_samplers_arguments_does_not_trace_again_but_a_step_count_does():
  traces = []
  config, task, state = made()

  def counted(params, state):
    traces.append(1)
    return task.denoiser(params, state)

  for steps, wanted in ((3, 1), (4, 2)):
    config.sample.steps = steps
    config.sample.sampler = "ddim(eta=0.0)"
    draws = draw.make_draw(config, task._replace(denoiser=counted), lambda rows: rows)
    images = []
    for eta in (0.0, 0.7):
      config.sample.sampler = f"ddim(eta={eta})"
      images.append(draws(state, np.arange(2), np.arange(2)))
    assert len(traces) == wanted
    assert (images[0] != images[1]).any()


def test_a_mask_of_another_size_than_its_image_is_told(tmp_path):
  image = write(tmp_path / "image.png", np.zeros((8, 8, 1), np.uint8))
  mask = write(tmp_path / "mask.png", np.zeros((16, 8, 1), np.uint8))
  config = small.config("dit", f"sample.image={image}", f"sample.mask={mask}")
  with pytest.raises(UserError, match="is 8x16 pixels, its image 8x8"):
    draw.check(config)
