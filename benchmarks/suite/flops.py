"""Floating-point operations of a case: by formula, and as the compiler counts them.

The formula counts products alone, two operations for a multiplication with its addition: linear layers, convolutions,
attention. It leaves out what is done element by element (norms, GELU, the optimizer), which the compiler counts too, and
counts the taps of a convolution that lie inside the image. A backward pass is a product for the gradient of a layer's weights
and one for that of its input; a network's first layers need only the former, a frozen network only the latter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.suite.cases import Case

TOLERANCE = 0.05
EXPLAINED = 0.15  # what a case's `why` may be the reason of


class Product(NamedTuple):
  """A product, or several alike, of one image's forward pass."""

  flops: float
  kind: str = "layer"  # a key of TRAINED and FROZEN


# How many products of its size a forward and a backward pass take.
TRAINED = {"first": 2, "layer": 3, "attention": 3, "condition": 3}
# Those of a network that is not trained, but through which the gradient goes to what is: from its output to the image's stream.
FROZEN = {"first": 1, "layer": 2, "attention": 3, "condition": 1}
FORWARD = dict.fromkeys(TRAINED, 1)


def of_step(case: Case) -> float:
  """FLOPs of one train step, or of one step of the sampler, over the whole batch: 0 for what is no computation."""
  return case.batch_size * PER_IMAGE[case.kind](case) if case.kind in PER_IMAGE else 0.0


def total(products: Sequence[Product], factors: dict[str, int]) -> float:
  return sum(factors[product.kind] * product.flops for product in products)


def network(case: Case) -> list[Product]:
  """The products of one image's forward pass."""
  return (
    dit(case.model, case.image_size) if case.model["name"] == "dit" else unet(case.model, case.image_size)
  )


def control(case: Case) -> float:
  """A trained branch of case.blocks blocks, and a frozen base: the gradient comes back to the output of its first block."""
  model, size = case.model, case.image_size
  width, tokens = model["width"], (size // model["patch_size"]) ** 2
  first, rest = dit(model | {"depth": 1}, size, is_whole=False), dit_block(model, size) * (model["depth"] - 1)
  of_base = total(first, FORWARD) + total([*rest, *dit_end(model, size)], FROZEN)
  hint = Product(linear(tokens, model["patch_size"] ** 2, width), "first")
  zeros = [Product(linear(tokens, width, width))] * case.blocks
  branch = [*dit(model | {"depth": case.blocks}, size, is_whole=False), hint, *zeros]
  return of_base + total(branch, TRAINED)


PER_IMAGE = {
  "train": lambda case: total(network(case), TRAINED),
  "control": control,
  # the student's step, and two steps of its teacher
  "distill": lambda case: total(network(case), TRAINED) + 2 * total(network(case), FORWARD),
  # with a label and without
  "sample": lambda case: 2 * total(network(case), FORWARD),
}


def linear(rows: int, features_in: int, features: int) -> float:
  return 2.0 * rows * features_in * features


def convolution(
  size: int, kernel: int, features_in: int, features: int, stride: int = 1, doubles: bool = False
) -> float:
  """Of a size x size map, zeros around: along one axis kernel taps for each result, less those that fall outside.

  Where it doubles, to such a map from one of half the size, by a kernel of 3: 2 taps for each result, less one at either end.
  """
  outputs = size // stride
  outside = 0 if kernel == 1 else 2 if stride == 1 else 1
  taps = (2 if doubles else kernel) * outputs - outside
  return 2.0 * taps**2 * features_in * features


def embedding(frequencies: int, dim: int) -> list[Product]:
  return [Product(linear(1, frequencies, dim), "first"), Product(linear(1, dim, dim), "condition")]


def attention(tokens: int, width: int) -> list[Product]:
  """The projections to q, k, v and back, and the two products between tokens."""
  projections = linear(tokens, width, 3 * width) + linear(tokens, width, width)
  return [Product(projections), Product(2 * linear(tokens, tokens, width), "attention")]


def dit(model: dict[str, Any], size: int, is_whole: bool = True) -> list[Product]:
  """A DiT; not whole: without its last layer."""
  tokens, values = (size // model["patch_size"]) ** 2, model["patch_size"] ** 2 * model["channels"]
  start = [Product(linear(tokens, values, model["width"]), "first"), *embedding(256, model["width"])]
  return start + dit_block(model, size) * model["depth"] + (dit_end(model, size) if is_whole else [])


def dit_block(model: dict[str, Any], size: int) -> list[Product]:
  width, tokens = model["width"], (size // model["patch_size"]) ** 2
  hidden = int(model.get("mlp_ratio", 4) * width)
  modulation, mlp = linear(1, width, 6 * width), 2 * linear(tokens, width, hidden)
  return [Product(modulation, "condition"), *attention(tokens, width), Product(mlp)]


def dit_end(model: dict[str, Any], size: int) -> list[Product]:
  width, tokens = model["width"], (size // model["patch_size"]) ** 2
  values = model["patch_size"] ** 2 * model["channels"] * (1 + model["learn_sigma"])
  return [Product(linear(1, width, 2 * width), "condition"), Product(linear(tokens, width, values))]


def unet(model: dict[str, Any], size: int) -> list[Product]:
  """A UNet, level by level down and up again."""
  widths = [model["width"] * mult for mult in model["channel_mults"]]
  found = [*embedding(model["width"], 4 * model["width"])]
  found.append(Product(convolution(size, 3, model["channels"], widths[0]), "first"))
  skips, now = [widths[0]], widths[0]
  for level, width in enumerate(widths):
    for _ in range(model["num_blocks"]):
      found += unet_block(model, size, now, width)
      skips.append(now := width)
    if level + 1 < len(widths):
      found += change(model, size, now, halves=True)
      skips.append(now)
      size //= 2
  found += [*res_block(model, size, now, now)] * 2 + attention(size**2, now)
  for level, width in reversed(list(enumerate(widths))):
    for _ in range(model["num_blocks"] + 1):
      found += unet_block(model, size, now + skips.pop(), width)
      now = width
    if level:
      size *= 2
      found += change(model, size, now, halves=False)
  return [*found, Product(convolution(size, 3, now, model["channels"] * (1 + model["learn_sigma"])))]


def unet_block(model: dict[str, Any], size: int, features_in: int, features: int) -> Iterator[Product]:
  yield from res_block(model, size, features_in, features)
  if size in model["attention_sizes"]:
    yield from attention(size**2, features)


def res_block(
  model: dict[str, Any], size: int, features_in: int, features: int, doubles: bool = False
) -> Iterator[Product]:
  """A block that works at `size`; where it doubles, on a map of half of that."""
  yield Product(convolution(size, 3, features_in, features, doubles=doubles))
  yield Product(linear(1, 4 * model["width"], features * (1 + model["scale_shift"])), "condition")
  yield Product(convolution(size, 3, features, features))
  if features_in != features:
    yield Product(convolution(size, 1, features_in, features))


def change(model: dict[str, Any], size: int, features: int, halves: bool) -> Iterator[Product]:
  """From `size` to half of it, or to `size` from half of it."""
  if model["resblock_updown"]:
    yield from res_block(model, size // 2 if halves else size, features, features, doubles=not halves)
  else:
    yield Product(convolution(size, 3, features, features, stride=2 if halves else 1, doubles=not halves))


def difference(formula: float, compiled: float | None, lowered: float | None, why: str) -> str:
  """Empty where formula and compiler agree within TOLERANCE, else one line that says why not.

  lowered is the compiler's count of the program as it was given, before it was optimised.
  """

  def agrees(count: float | None) -> bool:
    return count is not None and abs(count / formula - 1) <= TOLERANCE

  if not formula or agrees(compiled):
    return ""
  if agrees(lowered):
    return "what the compiler hands to libraries it does not count; before optimisation the two agree"
  if compiled is None:
    return "this compiler does not count"
  if why and abs(compiled / formula - 1) <= EXPLAINED:
    return why
  return f"not explained: the compiler counts {compiled / formula:.2f} times the formula"
