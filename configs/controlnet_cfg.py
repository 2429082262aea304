"""Control branches: a frozen class-conditional model learns to obey a hint.

python -m jaxdiff.main --config configs/dit_cfg.py:shapes              the base: 10 to 25 min on 2 CPU cores
python -m jaxdiff.main --config configs/controlnet_cfg.py              Canny edges; the same as :canny
python -m jaxdiff.main --config configs/controlnet_cfg.py:hough        straight lines
python -m jaxdiff.main --config configs/controlnet_cfg.py:scribble     what a person draws
python -m jaxdiff.main --config configs/controlnet_cfg.py:segmentation
python -m jaxdiff.main --config configs/controlnet_cfg.py:depth
python -m jaxdiff.main --config configs/controlnet_cfg.py:fashion_mnist    Canny edges of garments

Another base, a UNet for example: --config.base.workdir=checkpoints/unet_shapes --config.optim.learning_rate=1e-3
--config.train.batch_size=32.  The network, the process and the data are the base's.
Drawing by a hint: --mode sample --workdir checkpoints/controlnet_canny --config.sample.hint=FILE.png
Figures: docs/RESULTS.md.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base


def get_config(preset: str = "") -> ConfigDict:
  c = base.get_config()
  c.task = "controlnet"
  c.base = ConfigDict()  # the frozen model that is steered
  c.base.workdir = "checkpoints/dit_shapes"  # of its run
  c.base.command = "python -m jaxdiff.main --config configs/dit_cfg.py:shapes"  # what makes it
  c.model = ConfigDict()  # the base's

  c.control = ConfigDict()  # the branch that steers it
  c.control.blocks = 3  # of a DiT that are copied, from the first; a UNet's encoder is copied whole
  c.control.label_dropout = 0.5  # share of examples without label, so that the hint is read
  c.control.hint_dropout = 0.0  # share of examples with an empty hint
  c.control.unlock_decoder = False  # train the decoder of a UNet too
  # how hints are found in drawn images, to score these, as segmentation(onnx="FILE", scaling=unit); empty: as config.data.hint, by
  # the source's own detector (shapes has them), or not at all where hints are maps that nothing finds in an image
  c.control.reader = ""
  base.short_run(c)
  c.data.source = ""  # the base's
  c.data.heldout = "test"  # the hints of the pictures that are drawn while training
  c.sample.hint = "data"
  # what minutes of training leave undone; 1 does without, at two thirds of the cost
  c.sample.hint_guidance = 2.0
  c.sample.num = 24
  c.train.steps = 2000
  base.choose(PRESETS, preset or "canny")(c)
  c.name = f"controlnet_{preset or 'canny'}"
  return c


def hint(kind: str, guidance: float = 2.0) -> Callable[[ConfigDict], None]:
  def set_hint(c: ConfigDict) -> None:
    c.data.hint = kind
    c.sample.hint_guidance = guidance
    c.optim.learning_rate = 3e-3  # for a small DiT's branch; 1e-3 for a UNet's

  return set_hint


def fashion_mnist(c: ConfigDict) -> None:
  base.fashion_mnist(c)
  c.data.hint = "canny"
  c.base.workdir = "checkpoints/dit_fashion_mnist"
  c.base.command = "python -m jaxdiff.main --config configs/dit_cfg.py:fashion_mnist"


PRESETS = {name: hint(name) for name in ("canny", "scribble", "segmentation", "depth")} | {
  # the lines of one order of voting alone are others in an image that hardly differs
  "hough": hint("hough(orders=8, votes=0.2)", guidance=3.0),
  "fashion_mnist": fashion_mnist,
}
