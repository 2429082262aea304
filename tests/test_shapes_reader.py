"""The reader of drawn scenes: what is written as an ONNX file says what the network says, and serves as a detector."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from benchmarks import shapes_reader
from jaxdiff.data import hints
from jaxdiff.files import write_atomically


def test_the_file_is_the_network_and_a_detector_of_label_maps(tmp_path):
  model = shapes_reader.Reader(width=4)
  params = shapes_reader.train(model, steps=2)
  path = tmp_path / "reader.onnx"
  write_atomically(path, lambda file: file.write(shapes_reader.exported(params)))
  images, labels = shapes_reader.scenes("test", np.arange(2))
  assert labels.max() < shapes_reader.CLASSES
  said = np.asarray(model.apply({"params": params}, images))
  np.testing.assert_allclose(shapes_reader.read(path, images), said, atol=1e-5)
  detector = hints.parse(f"segmentation(onnx={str(path)!r}, scaling=unit)")
  for image, expected in zip(np.rint(images * 255).astype(np.uint8), said.argmax(-1), strict=True):
    assert np.array_equal(hints.detect(detector, image), hints.palette()[expected])
