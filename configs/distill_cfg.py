"""Progressive distillation: a trained model becomes one that samples in 128, 64, ..., 4, 2 and 1 steps.

python -m jaxdiff.main --config configs/dit_cfg.py                                the teacher
python -m jaxdiff.main --config configs/distill_cfg.py                            digits: 17 min on 2 CPU cores
python -m jaxdiff.main --config configs/distill_cfg.py --config.teacher.workdir=checkpoints/unet_digits
python -m jaxdiff.main --config configs/distill_cfg.py:guided                     students of a guided teacher, at any scale from 1 to 4
python -m jaxdiff.main --config configs/distill_cfg.py:fashion_mnist

Each round leaves its student as a run of its own: --mode sample --workdir checkpoints/distill_digits/steps_0004
Network, process and data are the teacher's.  Figures: docs/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(preset: str = "") -> ConfigDict:
  c = base.get_config()
  c.task = "distill"
  c.teacher = ConfigDict()  # what the first student learns from
  c.teacher.workdir = "checkpoints/dit_digits"  # of its run
  c.teacher.command = "python -m jaxdiff.main --config configs/dit_cfg.py"  # what makes it
  c.model = ConfigDict()  # the teacher's

  c.distill = ConfigDict()  # the rounds, each of which halves the steps
  c.distill.start_steps = 128  # sampling steps of the first student; the teacher then takes twice as many
  c.distill.end_steps = 1  # of the last one
  c.distill.updates = 400  # train steps of a round
  c.distill.updates_last = 800  # of the rounds to 2 steps and to 1
  # classifier-free guidance of the first teacher: one scale, built into the students ...
  c.distill.guidance = 1.0
  # ... or a range, from which students take the scale as an input (config.sample.guidance); equal ends: they take none
  c.distill.guidance_range = (1.0, 1.0)
  base.short_run(c)
  c.data.source = ""  # the teacher's
  c.diffusion.weighting = "truncated_snr"  # or uniform_v, uniform_eps
  c.optim.learning_rate = 3e-4
  c.optim.decay = "linear"  # to 0 within each round
  c.optim.warmup_steps = 0
  c.train.steps = 0  # that of all rounds together
  c.train.sample_every = 0
  base.choose(PRESETS, preset)(c)
  c.name = f"distill_{preset or 'digits'}"
  return c


def digits(c: ConfigDict) -> None:
  del c


def guided(c: ConfigDict) -> None:
  c.distill.guidance_range = (1.0, 4.0)


def fashion_mnist(c: ConfigDict) -> None:
  base.fashion_mnist(c)
  c.teacher.workdir = "checkpoints/dit_fashion_mnist"
  c.teacher.command = "python -m jaxdiff.main --config configs/dit_cfg.py:fashion_mnist"
  c.distill.updates = 500
  c.distill.updates_last = 1000


PRESETS = {"digits": digits, "guided": guided, "fashion_mnist": fashion_mnist}
