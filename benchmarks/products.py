"""What both networks spend most of their time on, by itself: products of matrices and convolutions, in XLA and in PyTorch.

python -m benchmarks.products [--rounds 5]                    (pip install -r requirements-torch.txt)

GFLOP/s in float32 on this machine's CPU: of the layer, of its gradient with respect to the input, and to the weights.  The two
frameworks run in processes of their own and take turns; medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks import turns
from benchmarks.suite import report

PASSES = ("forward", "to the input", "to the weights")
REPEATS = 20


class Layer(NamedTuple):
  """A linear layer of so many tokens, (N,), or a convolution 3x3 of so many images, (B, H, W)."""

  batch: tuple[int, ...]
  inputs: int
  outputs: int

  @property
  def taps(self) -> tuple[int, ...]:
    return (3, 3) if len(self.batch) == 3 else ()


LAYERS = (  # of the suite's networks: DiT-S/4 at batch 16, and the UNet
  Layer((1024,), 384, 1152),
  Layer((1024,), 384, 1536),
  Layer((1024,), 1536, 384),
  Layer((8, 32, 32), 64, 64),
  Layer((8, 32, 32), 192, 64),
  Layer((8, 16, 16), 128, 128),
  Layer((8, 16, 16), 256, 128),
  Layer((8, 8, 8), 256, 128),
)
Passes = Mapping[str, Callable[[], Any]]  # each of PASSES, done, as an array of its framework


def operands(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(input, weights, the gradient of the output), f32: [*batch,I], [*taps,I,O], [*batch,O]."""
  normal = np.random.default_rng(0).standard_normal
  shapes = (*layer.batch, layer.inputs), (*layer.taps, *layer[1:]), (*layer.batch, layer.outputs)
  x, w, g = (normal(shape, np.float32) for shape in shapes)
  return x, w, g


def gflop(layer: Layer) -> float:
  """Of one pass, 2 for each multiplication and addition; taps beyond an image's edge count too."""
  return 2e-9 * math.prod((*layer.batch, *layer.taps, *layer[1:]))


def in_jax(layer: Layer) -> Passes:
  """A layer's passes by XLA, with the flags that every run has; weights as in `operands`."""
  from jaxdiff import platform

  platform.configure()
  import jax

  from jaxdiff.models import layers

  apply = layers.convolve if layer.taps else jax.numpy.matmul
  x, w, g = map(jax.numpy.asarray, operands(layer))
  functions = {
    "forward": lambda x, w, g: apply(x, w),
    "to the input": lambda x, w, g: jax.vjp(lambda x: apply(x, w), x)[1](g)[0],
    "to the weights": lambda x, w, g: jax.vjp(lambda w: apply(x, w), w)[1](g)[0],
  }
  compiled = {name: jax.jit(function) for name, function in functions.items()}
  return {name: lambda f=f: f(x, w, g).block_until_ready() for name, f in compiled.items()}


def in_torch(layer: Layer) -> Passes:
  """A layer's passes by PyTorch, images in channels_last; weights [O,I], of a convolution [O,I,3,3]."""
  import torch

  torch.set_grad_enabled(False)
  x, w, g = map(torch.from_numpy, operands(layer))
  if not layer.taps:
    w = w.T.contiguous()
    return {
      "forward": lambda: torch.nn.functional.linear(x, w),
      "to the input": lambda: g @ w,
      "to the weights": lambda: g.T @ x,
    }
  x, g = x.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)
  w = w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
  back = lambda *mask: torch.ops.aten.convolution_backward(
    g, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*mask, False]
  )
  return {
    "forward": lambda: torch.nn.functional.conv2d(x, w, padding=1),
    "to the input": lambda: back(True, False)[0],
    "to the weights": lambda: back(False, True)[1],
  }


MAKERS: dict[str, Callable[[Layer], Passes]] = {"jax": in_jax, "torch": in_torch}


def rates(framework: str) -> list[list[float]]:
  """GFLOP/s of each pass of each layer, by the median of REPEATS."""
  taken = [turns.timed(MAKERS[framework](layer), REPEATS) for layer in LAYERS]
  return [
    [gflop(layer) / float(np.median(seconds)) for seconds in passes.values()]
    for layer, passes in zip(LAYERS, taken, strict=True)
  ]


def table(found: Mapping[str, np.ndarray]) -> str:
  """A row for each layer, "XLA's, PyTorch's" for each pass.  Shapes: found: framework -> f64[layers,passes]."""
  lines = [f"| GFLOP/s: XLA, PyTorch | {' | '.join(PASSES)} |", f"| --- |{' ---: |' * len(PASSES)}"]
  for i, layer in enumerate(LAYERS):
    kind = "convolution 3x3" if layer.taps else "product"
    name = f"{kind}, {'x'.join(map(str, layer.batch))}, {layer.inputs} to {layer.outputs}"
    cells = [", ".join(f"{found[framework][i, j]:.0f}" for framework in MAKERS) for j in range(len(PASSES))]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--framework", choices=MAKERS, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.framework:
    print(json.dumps(rates(flags.framework)))
    return
  from jaxdiff import platform

  platform.configure()
  print(report.heading(), flush=True)
  found: dict[str, list[list[list[float]]]] = {framework: [] for framework in MAKERS}
  for _ in range(flags.rounds):
    for framework, own in found.items():
      command = [sys.executable, "-m", "benchmarks.products", "--framework", framework]
      said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
      own.append(json.loads(said.splitlines()[-1]))
  print(table({framework: np.median(own, axis=0) for framework, own in found.items()}))


if __name__ == "__main__":
  main()
