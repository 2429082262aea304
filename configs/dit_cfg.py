"""Class-conditional Diffusion Transformers.

python -m jaxdiff.main --config configs/dit_cfg.py                  digits, 8x8: 5 min on 2 CPU cores
python -m jaxdiff.main --config configs/dit_cfg.py:fashion_mnist    Fashion-MNIST, 32x32: 30 min on 2 CPU cores
python -m jaxdiff.main --config configs/dit_cfg.py:shapes           drawn scenes, 32x32 RGB: 10 to 25 min on 2 CPU cores
python -m jaxdiff.main --config configs/dit_cfg.py:cifar10          one GPU
python -m jaxdiff.main --config configs/dit_cfg.py:imagenet64       8 GPUs or a TPU slice
python -m jaxdiff.main --config configs/dit_cfg.py:imagenet256_latent_xl2   DiT-XL/2 on 32x32x4 latents: --mode plan

Figures: docs/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import base
from jaxdiff.models import dit


def get_config(preset: str = "") -> ConfigDict:
  c = base.get_config()
  c.model = ConfigDict()  # the network
  c.model.name = "dit"  # dit | unet; the other keys are its own
  c.model.num_classes = 10  # labels; 0: unconditional
  c.model.channels = c.data.get_ref("channels")  # of an image
  c.model.learn_sigma = False  # predict a variance too (2C channels)
  c.model.patch_size = 2  # pixels, the side of the square that is one token
  c.model.width = 384  # channels of a token
  c.model.depth = 12  # blocks
  c.model.heads = 6  # attention heads; they divide width
  c.model.mlp_ratio = 4.0  # hidden channels of a block's MLP, in multiples of width
  # how time and label start: paper (of order 0.03: short runs hardly hear them) | unit (of order 1)
  c.model.embedding_init = "unit"
  c.model.qk_norm = False  # normalise queries and keys: steadier in bfloat16
  c.model.scan = False  # one compiled block: compiles faster, trains about 20% slower on CPU
  # what of a block the gradient's pass computes again, for less memory: none | dots (all but linear layers and convolutions)
  # | full (everything, a third more compute)
  c.model.remat = "none"
  c.model.attention = "auto"  # auto | xla | cudnn (flash attention; NVIDIA, bfloat16; auto: if it can)
  c.model.dtype = "float32"  # compute dtype: float32 | bfloat16; parameters stay float32
  base.choose(PRESETS, preset)(c)
  c.name = f"dit_{preset or 'digits'}"
  return c


def digits(c: ConfigDict) -> None:
  c.model.update(dit.SIZES["tiny"])
  base.short_run(c)
  c.train.steps = 1800


def fashion_mnist(c: ConfigDict) -> None:
  base.fashion_mnist(c)
  c.model.update(dit.SIZES["tiny"] | {"patch_size": 4})
  base.short_run(c)
  c.optim.learning_rate = 3e-3
  c.optim.ema_decay = 0.998
  c.optim.ema_start_step = 500
  c.train.steps = 3500


def shapes(c: ConfigDict) -> None:
  base.shapes(c)
  c.model.update(dit.SIZES["tiny"] | {"patch_size": 4})
  base.short_run(c)
  c.optim.learning_rate = 3e-3
  c.optim.ema_decay = 0.998
  c.optim.ema_start_step = 500
  c.train.steps = 3500


def cifar10(c: ConfigDict) -> None:
  base.cifar10(c)
  c.model.update(dit.SIZES["S"])
  c.model.dtype = "bfloat16"
  c.optim.learning_rate = 2e-4
  c.optim.warmup_steps = 1000
  c.train.steps = 200_000


def imagenet64(c: ConfigDict) -> None:
  base.imagenet64(c)
  c.model.update(dit.SIZES["L"] | {"patch_size": 4})
  c.model.dtype = "bfloat16"
  c.train.steps = 400_000


def imagenet256_latent_xl2(c: ConfigDict) -> None:
  """DiT-XL/2 with the paper's hyperparameters, for --mode plan and benchmarks: no source reads latents (f32[32,32,4]) yet."""
  base.imagenet64(c)
  c.data.source = "tfds:imagenet256_latents"
  c.data.image_size = 32
  c.data.channels = 4
  c.data.random_flip = False
  c.model.update(dit.SIZES["XL"] | {"learn_sigma": True})
  c.model.embedding_init = "paper"
  c.model.dtype = "bfloat16"
  c.diffusion.schedule = "linear"
  c.diffusion.parameterization = "eps"
  c.diffusion.weighting = "uniform_eps"
  c.diffusion.time_density = "uniform_discrete"
  c.optim.clip_norm = 0.0
  c.train.steps = 400_000
  c.sample.threshold = "none"
  c.sample.guidance = 4.0
  c.sample.sampler = "ddpm(variance=learned)"
  c.sample.steps = 250


PRESETS = {
  "digits": digits,
  "fashion_mnist": fashion_mnist,
  "shapes": shapes,
  "cifar10": cifar10,
  "imagenet64": imagenet64,
  "imagenet256_latent_xl2": imagenet256_latent_xl2,
}
