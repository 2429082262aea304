"""What both networks spend most of their time on, by itself: products of matrices and convolutions, in XLA and in PyTorch.

python -m benchmarks.products [--rounds 5]                    (pip install -r requirements-torch.txt)

GFLOP/s in float32 on this machine's CPU: of the layer, of its gradient with respect to the input, and to the weights.  The two
frameworks run in processes of their own and take turns; medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Of the suite's networks: tokens, channels in, channels out of DiT-S/4 at batch 16 ...
PRODUCTS = ((1024, 384, 1152), (1024, 384, 1536), (1024, 1536, 384))
# ... and images, pixels a side, channels in, channels out of the UNet's convolutions 3x3.
CONVOLUTIONS = ((8, 32, 64, 64), (8, 32, 192, 64), (8, 16, 128, 128), (8, 16, 256, 128), (8, 8, 256, 128))
PASSES = ("forward", "to the input", "to the weights")
FRAMEWORKS = ("jax", "torch")
REPEATS = 20

Shape = tuple[int, ...]
Passes = Mapping[str, Callable[[], Any]]  # each of PASSES, done, as an array of its framework


def operands(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(input, weights, the gradient of the output) of a layer, f32: [N,I], [I,O], [N,O]; or [B,S,S,I], [3,3,I,O], [B,S,S,O]."""
  *batch, inputs, outputs = shape
  if len(shape) == 4:
    batch = [batch[0], batch[1], batch[1]]
  taps = [3, 3] if len(shape) == 4 else []
  normal = np.random.default_rng(0).standard_normal
  x, w, g = ((*batch, inputs), (*taps, inputs, outputs), (*batch, outputs))
  return normal(x, np.float32), normal(w, np.float32), normal(g, np.float32)


def gflop(shape: Shape) -> float:
  """Of one pass, 2 for each multiplication and addition; taps beyond an image's edge count too."""
  x, w, _ = operands(shape)
  return 2e-9 * math.prod(x.shape[:-1]) * w.size


def in_jax(shape: Shape) -> Passes:
  """A layer's passes by XLA, with the flags that every run has; weights as in `operands`."""
  from jaxdiff import platform

  platform.configure()
  import jax

  from jaxdiff.models import layers

  layer = layers.convolve if len(shape) == 4 else jax.numpy.matmul
  x, w, g = map(jax.numpy.asarray, operands(shape))
  functions = {
    "forward": lambda x, w, g: layer(x, w),
    "to the input": lambda x, w, g: jax.vjp(lambda x: layer(x, w), x)[1](g)[0],
    "to the weights": lambda x, w, g: jax.vjp(lambda w: layer(x, w), w)[1](g)[0],
  }
  compiled = {name: jax.jit(function) for name, function in functions.items()}
  return {name: lambda f=f: f(x, w, g).block_until_ready() for name, f in compiled.items()}


def in_torch(shape: Shape) -> Passes:
  """A layer's passes by PyTorch, images in channels_last; weights [O,I], of a convolution [O,I,3,3]."""
  import torch

  torch.set_grad_enabled(False)
  x, w, g = map(torch.from_numpy, operands(shape))
  if len(shape) < 4:
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


MAKERS: dict[str, Callable[[Shape], Passes]] = {"jax": in_jax, "torch": in_torch}


def rates(framework: str) -> list[list[float]]:
  """GFLOP/s of each pass of each shape, the median of REPEATS after two that do not count."""
  return [
    [gflop(shape) / seconds(run) for run in MAKERS[framework](shape).values()]
    for shape in PRODUCTS + CONVOLUTIONS
  ]


def seconds(run: Callable[[], Any]) -> float:
  times = []
  for _ in range(REPEATS + 2):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  return statistics.median(times[2:])


def table(found: Mapping[str, np.ndarray]) -> str:
  """A row for each shape, "XLA's, PyTorch's" for each pass.  Shapes: found: framework -> f64[shapes,passes]."""
  lines = [f"| GFLOP/s: XLA, PyTorch | {' | '.join(PASSES)} |", f"| --- |{' ---: |' * len(PASSES)}"]
  for i, shape in enumerate(PRODUCTS + CONVOLUTIONS):
    name = "convolution 3x3, {}x{}x{}, {} to {}" if len(shape) == 4 else "product, {}, {} to {}"
    sizes = (shape[0], shape[1], *shape[1:]) if len(shape) == 4 else shape
    cells = [
      ", ".join(f"{found[framework][i, j]:.0f}" for framework in FRAMEWORKS) for j in range(len(PASSES))
    ]
    lines.append(f"| {name.format(*sizes)} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--framework", choices=FRAMEWORKS, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.framework:
    print(json.dumps(rates(flags.framework)))
    return
  found: dict[str, list[list[list[float]]]] = {framework: [] for framework in FRAMEWORKS}
  for _ in range(flags.rounds):
    for framework, own in found.items():
      command = [sys.executable, "-m", "benchmarks.products", "--framework", framework]
      said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
      own.append(json.loads(said.splitlines()[-1]))
  print(table({framework: np.median(own, axis=0) for framework, own in found.items()}))


if __name__ == "__main__":
  main()
