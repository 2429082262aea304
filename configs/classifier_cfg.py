"""Classifiers of noised images, p(label | z_t, t), for classifier guidance; and of clean ones.

python -m jaxdiff.main --config configs/classifier_cfg.py                  digits, 8x8: 2 min on 2 CPU cores
python -m jaxdiff.main --config configs/classifier_cfg.py:clean            the same at t = 0 only
python -m jaxdiff.main --config configs/classifier_cfg.py:dit              the same with the blocks of a DiT
python -m jaxdiff.main --config configs/classifier_cfg.py:fashion_mnist    Fashion-MNIST, 32x32: 15 min on 2 CPU cores
python -m jaxdiff.main --config configs/classifier_cfg.py:fashion_mnist_clean    half the steps of that
python -m jaxdiff.main --config configs/classifier_cfg.py:shapes_clean     drawn scenes, 32x32 RGB: 5 min on 2 CPU cores
python -m jaxdiff.main --config configs/classifier_cfg.py:cifar10          one GPU
python -m jaxdiff.main --config configs/classifier_cfg.py:imagenet64       ADM's 64x64 classifier: 8 GPUs or a TPU slice

Steering by one: --mode sample --workdir MODEL --config.sample.classifier=CLASSIFIER --config.sample.classifier_scale=2
Figures: docs/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import base
from jaxdiff.models import classifier, dit


def get_config(preset: str = "") -> ConfigDict:
  c = base.get_config()
  c.task = "classifier"
  c.optim.weight_decay = 0.05
  c.model = ConfigDict()  # the network
  # dit | unet; the other keys are its own: a dit has those of Diffusion Transformers, and dropout
  c.model.name = "unet"
  c.model.num_classes = 10  # labels that it tells apart
  c.model.channels = c.data.get_ref("channels")  # of an image
  c.model.width = 32  # channels at full resolution
  c.model.channel_mults = (1, 2)  # channels of each level, in multiples of width
  c.model.num_blocks = 2  # residual blocks a level
  c.model.attention_sizes = (4,)  # feature-map sizes that get self-attention
  c.model.head_channels = 32  # channels of a head, also where all pixels are pooled
  c.model.scale_shift = True  # condition by scale and shift after the norm; False adds
  c.model.resblock_updown = True  # change resolution inside a residual block; False: by a convolution
  c.model.dropout = 0.1  # share of a residual block's activations that training drops
  # what of a block the gradient's pass computes again, for less memory: none | dots (all but linear layers and convolutions)
  # | full (everything, a third more compute)
  c.model.remat = "none"
  c.model.attention = "auto"  # auto | xla | cudnn (flash attention; NVIDIA, bfloat16; auto: if it can)
  c.model.dtype = "float32"  # compute dtype: float32 | bfloat16; parameters stay float32
  base.choose(PRESETS, preset)(c)
  c.name = f"classifier_{preset or 'digits'}"
  return c


def digits(c: ConfigDict) -> None:
  base.short_run(c)
  c.data.split = "train[:80%]"
  c.data.heldout = "train[80%:]"
  c.train.steps = 1500


def clean(c: ConfigDict) -> None:
  digits(c)
  c.diffusion.time_density = "clean"


def digits_dit(c: ConfigDict) -> None:
  digits(c)
  c.model = ConfigDict({"name": "dit", "num_classes": 10, "channels": 1, "dropout": 0.1} | dit.SIZES["tiny"])


def fashion_mnist(c: ConfigDict) -> None:
  base.fashion_mnist(c)
  base.short_run(c)
  c.data.heldout = "test"
  c.data.random_flip = True
  c.model.channel_mults = (1, 2, 2)
  c.model.num_blocks = 1
  c.model.attention_sizes = (8,)
  c.train.steps = 3000


def fashion_mnist_clean(c: ConfigDict) -> None:
  fashion_mnist(c)
  c.diffusion.time_density = "clean"
  c.train.steps = 1500


def shapes_clean(c: ConfigDict) -> None:
  base.shapes(c)
  base.short_run(c)
  c.data.heldout = "test"
  c.model.channel_mults = (1, 2, 2)
  c.model.num_blocks = 1
  c.model.attention_sizes = (8,)
  c.diffusion.time_density = "clean"
  c.train.steps = 1000


def cifar10(c: ConfigDict) -> None:
  base.cifar10(c)
  c.data.heldout = "test"
  c.model.width = 128
  c.model.channel_mults = (1, 2, 2)
  c.model.attention_sizes = (16, 8)
  c.model.head_channels = 64
  c.model.dtype = "bfloat16"
  c.optim.learning_rate = 3e-4
  c.optim.decay = "cosine"
  c.train.batch_size = 256
  c.train.steps = 50_000


def imagenet64(c: ConfigDict) -> None:
  """The 64x64 classifier of Dhariwal & Nichol 2021, trained as their released command trains its 128x128 one."""
  base.imagenet64(c)
  c.data.heldout = "validation"
  c.data.random_crop = True
  c.model.update(classifier.PRESETS["adm_imagenet64"])
  c.model.dropout = 0.0
  c.model.dtype = "bfloat16"
  c.optim.learning_rate = 3e-4
  c.optim.decay = "linear"
  c.optim.clip_norm = 0.0
  c.diffusion.time_density = "uniform_discrete"
  c.train.steps = 300_000


PRESETS = {
  "digits": digits,
  "clean": clean,
  "dit": digits_dit,
  "fashion_mnist": fashion_mnist,
  "fashion_mnist_clean": fashion_mnist_clean,
  "shapes_clean": shapes_clean,
  "cifar10": cifar10,
  "imagenet64": imagenet64,
}
