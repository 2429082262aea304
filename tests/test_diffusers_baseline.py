"""The baseline that a PyTorch user would train: its schedule, its average, what it draws, the files it leaves."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from configs import unet_cfg
from jaxdiff import data
from jaxdiff.evaluation import images
from tests import small

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
baseline = pytest.importorskip("benchmarks.diffusers_baseline")


def config(**changes):
  c = small.config("unet")
  c.optim.update(changes)
  return c


def trained(c, ticks):
  """What a training on digits comes to whose clock shows these seconds of one."""
  (batch,) = data.epoch(data.load(c.data.source, c.data.split), c.data, 2000)
  torch.manual_seed(0)
  model, shown = baseline.build(c), iter(ticks)
  pixels = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
  label = torch.from_numpy(batch["label"]).long()
  return baseline.train(c, model, baseline.noise_table(), pixels, label, 1.0, lambda: next(shown))


def test_a_training_ends_with_its_time_and_averages_from_its_start_on():
  # read at the start, before each step, at the end
  one, two = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0, 1.25)
  first = trained(config(ema_start_step=1), one)
  second = trained(config(ema_start_step=2), two)
  average = trained(config(ema_start_step=1, ema_decay=0.75), two)
  assert [first.steps, second.steps, average.steps] == [1, 2, 2]
  assert second.seconds == 1.25
  for name, value in average.ema.items():
    assert not torch.equal(first.ema[name], second.ema[name]) or name.startswith("class_embedding")
    torch.testing.assert_close(value, 0.75 * first.ema[name] + 0.25 * second.ema[name])


def test_a_clock_of_a_rate_counts_steps():
  clock = baseline.clock_of(rate=16.0, batch_size=8)
  assert [clock() for _ in range(5)] == [0, 0, 0.5, 1, 1.5]


def test_rate_warms_up_by_steps_and_falls_by_the_share_of_time():
  o = config(learning_rate=0.4, warmup_steps=4).optim
  rates = [baseline.learning_rate(o, n, share) for n, share in ((0, 0), (3, 0), (9, 0.5), (9, 1))]
  np.testing.assert_allclose(rates, [0.1, 0.4, 0.2, 0], atol=1e-12)


def test_sampling_starts_where_nothing_of_the_image_is_left():
  table = baseline.noise_table()
  table.set_timesteps(50)
  assert [int(table.timesteps[0]), int(table.timesteps[-1]), len(table.timesteps)] == [999, 19, 50]
  x, eps, last = torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.tensor([999, 999])
  torch.testing.assert_close(table.add_noise(x, eps, last), eps)
  torch.testing.assert_close(table.get_velocity(x, eps, last), -x)


def test_guidance_weighs_what_the_label_changes():
  torch.manual_seed(1)
  model = baseline.build(config()).eval()
  z, t, label = torch.randn(3, 1, 8, 8), torch.tensor(500), torch.tensor([1, 2, 3])
  null = torch.full_like(label, 10)
  with torch.no_grad():
    told, untold = (baseline.guided(model, z, t, given, 1) for given in (label, null))
    assert (told - untold).abs().max() > 1e-4
    torch.testing.assert_close(baseline.guided(model, z, t, label, 3), 3 * told - 2 * untold)


def test_parameters_and_images_are_files_that_an_evaluation_reads(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(unet_cfg, "get_config", lambda preset: config())
  out = tmp_path / "new" / "baseline.npz"

  def call(*flags):
    monkeypatch.setattr(sys, "argv", ["baseline", "--out", str(out), "--num", "2", "--steps", "2", *flags])
    baseline.main()

  call("--seconds", "1e-9", "--train_only")
  assert [path.name for path in out.parent.iterdir()] == ["baseline.pt"]
  call("--draw_only", "--guidance", "1,1.5")
  drawn = [images.of_npz(out.with_name(f"baseline_{scale}.npz"), "key") for scale in ("1", "1.5")]
  (one, label), (guided, _) = (next(iter(found.batches())) for found in drawn)
  assert one.shape == (2, 8, 8, 1) and label.tolist() == [0, 1]
  assert np.abs(one.astype(int) - guided).max() > 0
  call("--draw_only", "--guidance", "1")
  again, _ = next(iter(images.of_npz(out, "key").batches()))
  np.testing.assert_array_equal(again, one)
  assert "parameters: diffusers" in capsys.readouterr().out
