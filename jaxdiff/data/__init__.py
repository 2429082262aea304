"""The host side: images with labels from any source, as an endless, exactly resumable stream of batches.

    source = load("idx:/usr/share/datasets/fashion-mnist")
    for batch in stream(source, config.data, batch_size=128, seed=0, start=step):
      ...  # {"image": uint8[b,S,S,C], "label": int32[b], "index": uint32[b]}, and "hint": uint8[b,S,S,Ch] if asked for

`sources` opens what lies on disk, `transforms` makes every image one size, `pipeline` orders and batches,
`ahead` makes batches before they are asked for, `hints` are what a control branch is steered by, `prepare` writes a source
as a TFDS ArrayRecord set. Images stay uint8 until `pixels` scales them on the device.
"""

from jaxdiff.data.ahead import device_prefetch
from jaxdiff.data.base import NoSplit, Source
from jaxdiff.data.files import read_hint
from jaxdiff.data.folder import SUFFIXES
from jaxdiff.data.hinted import without_hints
from jaxdiff.data.pipeline import (
  check_images,
  check_labels,
  check_same_classes,
  epoch,
  examples,
  fingerprint,
  reader,
  stream,
)
from jaxdiff.data.sources import load

__all__ = [
  "SUFFIXES",
  "NoSplit",
  "Source",
  "check_images",
  "check_labels",
  "check_same_classes",
  "device_prefetch",
  "epoch",
  "examples",
  "fingerprint",
  "load",
  "read_hint",
  "reader",
  "stream",
  "without_hints",
]
