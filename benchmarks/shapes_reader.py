"""A reader of label maps for the drawn scenes `shapes`: a small network, trained here, written as an ONNX file.

python -m benchmarks.shapes_reader --out checkpoints/shapes_reader/segmentation.onnx      (pip install onnx onnxruntime)

A drawn image has no label map, so that how well it obeys one is what this network reads off it, of drawn and of real images
alike: --config.control.reader='segmentation(onnx="FILE", scaling=unit)', or benchmarks.controlnet --reader segmentation=FILE.

Nine 3x3 convolutions whose dilation grows to 8, so that a pixel sees all of its shape, trained by cross-entropy on scenes with
flips and a little noise, as drawn images are not quite clean.  Prints pixel accuracy and mean IoU on test scenes, and checks
that the file says what the network says.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import data, reporting
from jaxdiff.data import onnx_file, shapes
from jaxdiff.errors import require
from jaxdiff.files import write_atomically
from jaxdiff.scores.fidelity import mean_iou
from jaxdiff.types import Array, PyTree

DILATIONS = (1, 1, 2, 4, 8, 4, 2, 1)  # of the layers after the first
CLASSES = 1 + len(shapes.KINDS)  # the ground, and each kind
NOISE = 0.03  # standard deviation of what is added to pixels in [0, 1]
BATCH = 64


class Reader(nn.Module):
  """Logits of each pixel's class.  Shapes: x: f32[B,H,W,3] in [0, 1].  Returns f32[B,H,W,CLASSES]."""

  width: int = 48

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = nn.relu(nn.Conv(self.width, (3, 3), name="conv_in")(x))
    for i, dilation in enumerate(DILATIONS):
      h = h + nn.relu(nn.Conv(self.width, (3, 3), kernel_dilation=dilation, name=f"conv_{i}")(h))
    return nn.Conv(CLASSES, (1, 1), name="conv_out")(h)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, required=True, metavar="FILE.onnx")
  parser.add_argument("--steps", type=int, default=1500)
  parser.add_argument("--width", type=int, default=48)
  flags = parser.parse_args()
  reporting.setup_logging()
  model = Reader(flags.width)
  params = train(model, flags.steps)
  write_atomically(flags.out, lambda file: file.write(exported(params)))
  images, labels = scenes("test", np.arange(500))
  said = np.asarray(jax.jit(model.apply)({"params": params}, images))
  of_file = np.concatenate([read(flags.out, images[i : i + 50]) for i in range(0, len(images), 50)])
  found = said.argmax(-1)
  print(f"pixel accuracy {np.mean(found == labels):.4f}, mean IoU {mean_iou(labels, found, CLASSES):.4f}")
  print(f"the file differs from the network by {np.abs(of_file - said).max():.1e} at most")


def scenes(split: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(images f32[N,32,32,3] in [0, 1], labels i32[N,32,32])."""
  examples = data.load("shapes", split).take(rows)
  images = np.stack([example["image"] for example in examples]).astype(np.float32) / 255
  return images, np.stack([example["maps"]["segmentation"] for example in examples]).astype(np.int32)


def train(model: Reader, steps: int) -> PyTree:
  """Parameters after so many steps of Adam, whose rate falls to 0."""
  tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]

  @jax.jit
  def step(params: PyTree, opt_state: Any, images: Array, labels: Array, key: Array) -> Any:
    noisy = images + NOISE * jax.random.normal(key, images.shape)

    def loss(params: PyTree) -> Array:
      said = model.apply({"params": params}, noisy)
      return optax.softmax_cross_entropy_with_integer_labels(said, labels).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, value

  opt_state, rng = tx.init(params), np.random.default_rng(0)
  with reporting.progress(steps) as bar:
    for number in range(steps):
      images, labels = scenes("train", rng.integers(0, shapes.SPLITS["train"], BATCH))
      if rng.random() < 0.5:
        images, labels = images[:, :, ::-1], labels[:, :, ::-1]
      params, opt_state, value = step(params, opt_state, images, labels, jax.random.key(number))
      bar.update()
      if number % 50 == 0:
        bar.show(loss=float(value))
  return params


def exported(params: PyTree) -> bytes:
  """The network as an ONNX file that reads f32[N,3,H,W] in [0, 1] and says f32[N,CLASSES,H,W]."""
  onnx = require("onnx", "onnx", "writing an ONNX file")
  helper, kind = onnx.helper, onnx.TensorProto.FLOAT
  nodes, tensors = [], []

  def conv(name: str, x: str, dilation: int = 1) -> str:
    kernel = np.asarray(params[name]["kernel"]).transpose(3, 2, 0, 1)
    weights = {f"{name}_kernel": kernel, f"{name}_bias": np.asarray(params[name]["bias"])}
    tensors.extend(onnx.numpy_helper.from_array(np.ascontiguousarray(a), key) for key, a in weights.items())
    pads = [dilation * (kernel.shape[-1] // 2)] * 4
    nodes.append(helper.make_node("Conv", [x, *weights], [name], dilations=[dilation] * 2, pads=pads))
    return name

  def add(op: str, *inputs: str) -> str:
    nodes.append(helper.make_node(op, list(inputs), [f"{op}_{len(nodes)}"]))
    return nodes[-1].output[0]

  h = add("Relu", conv("conv_in", "image"))
  for i, dilation in enumerate(DILATIONS):
    h = add("Add", h, add("Relu", conv(f"conv_{i}", h, dilation)))
  out = conv("conv_out", h)
  ends = [
    helper.make_tensor_value_info(name, kind, ["N", channels, "H", "W"])
    for name, channels in (("image", 3), (out, CLASSES))
  ]
  graph = helper.make_graph(nodes, "shapes_reader", ends[:1], ends[1:], tensors)
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
  onnx.checker.check_model(model)
  return model.SerializeToString()


def read(path: Path, images: np.ndarray) -> np.ndarray:
  """What the file says of images f32[N,H,W,3] in [0, 1]: f32[N,H,W,CLASSES]."""
  session = onnx_file.open_session(path)
  (said,) = session.run(None, {"image": images.transpose(0, 3, 1, 2)})
  return said.transpose(0, 2, 3, 1)


if __name__ == "__main__":
  main()
