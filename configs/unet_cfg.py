"""Class-conditional UNets.

python -m jaxdiff.main --config configs/unet_cfg.py                  digits, 8x8: 5 min on 2 CPU cores
python -m jaxdiff.main --config configs/unet_cfg.py:fashion_mnist    Fashion-MNIST, 32x32: 25 min on 2 CPU cores
python -m jaxdiff.main --config configs/unet_cfg.py:shapes           drawn scenes, 32x32 RGB: 10 to 25 min on 2 CPU cores
python -m jaxdiff.main --config configs/unet_cfg.py:cifar10          DDPM's CIFAR-10 network, class-conditional: one GPU
python -m jaxdiff.main --config configs/unet_cfg.py:imagenet64       ADM's 64x64 network: 8 GPUs or a TPU slice

Figures: docs/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import base
from jaxdiff.models import unet


def get_config(preset: str = "") -> ConfigDict:
  c = base.get_config()
  c.model = ConfigDict()  # the network
  c.model.name = "unet"  # dit | unet; the other keys are its own
  c.model.num_classes = 10  # labels; 0: unconditional
  c.model.channels = c.data.get_ref("channels")  # of an image
  c.model.null_class = True  # a label that says "none", which guidance needs
  c.model.learn_sigma = False  # predict a variance too (2C channels)
  c.model.width = 64  # channels at full resolution
  c.model.channel_mults = (1, 2)  # channels of each level, in multiples of width
  c.model.num_blocks = 2  # residual blocks a level
  c.model.attention_sizes = (4,)  # feature-map sizes that get self-attention
  c.model.heads = 1  # attention heads, where head_channels is 0
  c.model.head_channels = 32  # channels of a head
  c.model.scale_shift = True  # condition by scale and shift after the norm; False adds
  c.model.resblock_updown = False  # change resolution inside a residual block; False: by a convolution
  c.model.dropout = 0.0  # share of a residual block's activations that training drops
  # what of a block the gradient's pass computes again, for less memory: none | dots (all but linear layers and convolutions)
  # | full (everything, a third more compute)
  c.model.remat = "none"
  c.model.attention = "auto"  # auto | xla | cudnn (flash attention; NVIDIA, bfloat16; auto: if it can)
  c.model.dtype = "float32"  # compute dtype: float32 | bfloat16; parameters stay float32
  base.choose(PRESETS, preset)(c)
  c.name = f"unet_{preset or 'digits'}"
  return c


def digits(c: ConfigDict) -> None:
  c.model.width = 32
  base.short_run(c)
  c.train.steps = 1500


def fashion_mnist(c: ConfigDict) -> None:
  base.fashion_mnist(c)
  small(c)
  c.train.steps = 2500


def shapes(c: ConfigDict) -> None:
  base.shapes(c)
  small(c)
  c.train.steps = 2500


def small(c: ConfigDict) -> None:
  """A network for 32x32 that trains on a CPU."""
  c.model.width = 32
  c.model.channel_mults = (1, 2, 2)
  c.model.num_blocks = 1
  c.model.attention_sizes = (8,)
  base.short_run(c)
  c.optim.ema_start_step = 500
  c.train.batch_size = 32


def cifar10(c: ConfigDict) -> None:
  """The network of Ho et al. 2020, appendix B, with labels."""
  base.cifar10(c)
  c.model.update(unet.PRESETS["ddpm_cifar10"] | {"num_classes": 10})
  c.model.dtype = "bfloat16"
  c.optim.learning_rate = 2e-4
  c.optim.warmup_steps = 5000
  c.train.steps = 800_000


def imagenet64(c: ConfigDict) -> None:
  """The 64x64 class-conditional network of Dhariwal & Nichol 2021, table 11."""
  base.imagenet64(c)
  c.model.update(unet.PRESETS["adm_imagenet64"] | {"null_class": True})
  c.diffusion.time_density = "uniform_discrete"
  c.model.dtype = "bfloat16"
  c.train.batch_size = 2048
  c.train.steps = 540_000


PRESETS = {
  "digits": digits,
  "fashion_mnist": fashion_mnist,
  "shapes": shapes,
  "cifar10": cifar10,
  "imagenet64": imagenet64,
}
