"""What is timed. A case is a kind of work on a network; a suite is the cases that suit a kind of machine."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

# As jaxdiff.models.dit.SIZES, which the process that starts the others does not import: it would bring JAX.
NANO = {"width": 64, "depth": 4, "heads": 2}
TINY = {"width": 128, "depth": 6, "heads": 4}
SMALL = {"width": 384, "depth": 12, "heads": 6}
BASE = {"width": 768, "depth": 12, "heads": 12}
LARGE = {"width": 1024, "depth": 24, "heads": 16}
XLARGE = {"width": 1152, "depth": 28, "heads": 16}

LATENTS = {"name": "dit", "num_classes": 1000, "channels": 4, "learn_sigma": False}
DIGITS = {"name": "dit", "num_classes": 10, "channels": 1, "learn_sigma": False, "patch_size": 2}
UNET = {
  "name": "unet",
  "num_classes": 10,
  "channels": 3,
  "learn_sigma": False,
  "width": 64,
  "channel_mults": (1, 2, 2),
  "num_blocks": 2,
  "attention_sizes": (8,),
  "heads": 4,
  "scale_shift": True,
  "resblock_updown": False,
}
ADM = UNET | {  # ADM's network for ImageNet 64x64, without its dropout and learned variance
  "num_classes": 1000,
  "width": 192,
  "channel_mults": (1, 2, 3, 4),
  "num_blocks": 3,
  "attention_sizes": (32, 16, 8),
  "head_channels": 64,
  "resblock_updown": True,
}

OWN = ("torch", "torch.compile")  # the networks of benchmarks/rivals
TORCH = (*OWN, "diffusers")
LOOP = ("grain", "ml_collections", "orbax.checkpoint", "matplotlib", "tensorboardX", "tqdm", "sklearn")
LOADER = ("grain", "cv2")
BLOCKS = 3  # of a DiT that a control branch copies, where there are so many


class Case(NamedTuple):
  """What is timed."""

  kind: str  # train | control | distill | sample | data | loop | checkpoint: see ours.MAKERS
  model: dict[str, Any]  # a config's model section
  image_size: int
  batch_size: int
  steps: int = 0  # of the sampler; of a run, for `loop`
  dtype: str = "float32"
  rivals: tuple[str, ...] = TORCH
  runs: int = 1  # in one measurement
  needs: tuple[str, ...] = ()  # modules without which it is left out
  eats: str = ""  # of `data`: the case whose images/s it has to reach
  changes: tuple[str, ...] = ()  # of our config, as model.remat=full
  why: str = ""  # the formula and the compiler may count differently

  @property
  def shape(self) -> tuple[int, int, int, int]:
    return (self.batch_size, self.image_size, self.image_size, self.model["channels"])

  @property
  def blocks(self) -> int:
    """Of a DiT that its control branch copies."""
    return min(BLOCKS, self.model["depth"])


NARROW = "what is done element by element, which the formula leaves out, weighs more in a narrow network"


def dit(size: dict[str, Any], patch_size: int) -> dict[str, Any]:
  """A DiT on latents of 32x32x4."""
  return LATENTS | size | {"patch_size": patch_size}


S4, S2, B2 = dit(SMALL, 4), dit(SMALL, 2), dit(BASE, 2)
_train = functools.partial(Case, "train")
_sample = functools.partial(Case, "sample", steps=50)

# Around what two cores can do.
CPU = {
  "dit_s4_train": _train(S4, 32, 16, runs=3),
  "dit_s2_train": _train(S2, 32, 4, runs=3),
  "dit_b2_train": _train(B2, 32, 2, runs=2),
  "unet_train": _train(UNET, 32, 8, runs=8),
  "tiny_train": _train(DIGITS | TINY, 8, 64, runs=30, why=NARROW),
  "control_train": Case("control", S4, 32, 8, rivals=OWN, runs=3),
  "distill_train": Case("distill", S4, 32, 8, rivals=OWN, runs=3),
  "dit_s4_sample_1": _sample(S4, 32, 1),
  "dit_s4_sample_4": _sample(S4, 32, 4),
  "dit_s2_sample_1": _sample(S2, 32, 1),
  "unet_sample_1": _sample(UNET, 32, 1),
  "nano_sample_1": _sample(DIGITS | NANO, 8, 1, runs=20, why=NARROW),
  "nano_sample_16": _sample(DIGITS | NANO, 8, 16, runs=5, why=NARROW),
  "tiny_sample_1": _sample(DIGITS | TINY, 8, 1, runs=10, why=NARROW),
  "tiny_sample_16": _sample(DIGITS | TINY, 8, 16, runs=2, why=NARROW),
  "data": Case("data", UNET, 32, 64, rivals=(), needs=LOADER, eats="unet_train"),
  "loop": Case("loop", DIGITS | TINY, 8, 64, steps=600, rivals=(), needs=LOOP),
  "checkpoint": Case("checkpoint", S4, 32, 1, rivals=("torch.save",), needs=("orbax.checkpoint",)),
}

_train_bf16 = functools.partial(_train, dtype="bfloat16")
_sample_bf16 = functools.partial(_sample, dtype="bfloat16")
SIZES = {"s4": S4, "s2": S2, "b2": B2, "l2": dit(LARGE, 2), "xl2": dit(XLARGE, 2)}

# Compute in bfloat16, parameters and their optimizer in float32, for all contestants.
GPU = {
  **{f"dit_{name}_train": _train_bf16(model, 32, 256, runs=5) for name, model in SIZES.items()},
  "unet_train": _train_bf16(UNET, 32, 256, runs=5),
  "adm64_train": _train_bf16(ADM, 64, 64, runs=5),
  "control_train": Case("control", B2, 32, 256, dtype="bfloat16", rivals=OWN, runs=5),
  "distill_train": Case("distill", B2, 32, 256, dtype="bfloat16", rivals=OWN, runs=5),
  **{f"dit_{name}_sample": _sample_bf16(model, 32, 64) for name, model in SIZES.items()},
  "unet_sample": _sample_bf16(UNET, 32, 64),
  "adm64_sample": _sample_bf16(ADM, 64, 64),
  "data": Case("data", UNET, 32, 256, rivals=(), needs=LOADER, eats="unet_train"),
  "loop": Case("loop", DIGITS | SMALL, 32, 256, steps=600, dtype="bfloat16", rivals=(), needs=LOOP),
  "checkpoint": Case("checkpoint", SIZES["xl2"], 32, 1, rivals=("torch.save",), needs=("orbax.checkpoint",)),
}

SUITES = {"cpu": CPU, "gpu": GPU}


def tiny(case: Case) -> Case:
  """The same kind of work at a size that takes seconds: for tests."""
  if case.model["name"] == "dit":
    model = case.model | {"width": 32, "depth": 1, "heads": 2}
  else:
    mults, sizes = case.model["channel_mults"][:2], (case.image_size // 8,)
    small = {"width": 8, "channel_mults": mults, "num_blocks": 1, "attention_sizes": sizes}
    model = case.model | small | {"head_channels": 8}
  size = case.image_size if case.model["channels"] == 1 and case.image_size == 8 else case.image_size // 4
  return case._replace(model=model, image_size=size, batch_size=4, steps=min(case.steps, 4), runs=1)
