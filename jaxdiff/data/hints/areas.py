"""What belongs together, as areas of one colour each."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from jaxdiff.data import transforms
from jaxdiff.data.hints import inputs, networks

LARGEST = 128  # pixels: regions of a larger image are found in a smaller one
# of k-means, and the shift at which it ends
ROUNDS = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 20, 0.5)


def segmentation(
  image: np.ndarray,
  *,
  colours: int = 6,
  min_area: float = 0.01,
  smooth: float = 0.03,
  onnx: str = "",
  scaling: str = "imagenet",
) -> np.ndarray:
  """The regions of an image in the colours of `palette`.

  Without a network: the image, with texture smoothed away over `smooth` of its shorter side (mean shift), is divided
  into `colours` clusters of CIE Lab by k-means; a region is a connected part of a cluster. Regions smaller than a share
  `min_area` of the image go to their neighbours. The largest region has label 0, and so on. That follows colours, not
  things: two touching things of one colour are one region, a thing of three colours is three.

  `onnx`: the file of a network that tells classes, of logits [N,C,h,w] or labels [N,h,w]; `scaling`: of its pixels, a
  key of data.onnx_file.SCALINGS. Its labels are coloured.

  Shapes: image: uint8[H,W,1 or 3].  Returns uint8[H,W,3].
  """
  inputs.check(image)
  inputs.at_least(1, "segmentation", colours=colours)
  inputs.at_least(0, "segmentation", min_area=min_area, smooth=smooth)
  if onnx:
    return segmentation_from_labels(networks.labels(image, onnx, scaling))
  return segmentation_from_labels(regions(inputs.rgb(image), colours, min_area, smooth))


def segmentation_from_labels(labels: np.ndarray) -> np.ndarray:
  """A label map in the colours of `palette`.

  Shapes: labels: uint8[H,W].  Returns uint8[H,W,3].  Raises TypeError for any other array.
  """
  if labels.dtype != np.uint8 or labels.ndim != 2:
    raise TypeError(f"a label map is uint8[H,W], not {labels.dtype}{list(labels.shape)}")
  return palette()[labels]


@functools.cache
def palette() -> np.ndarray:
  """The colours of the labels 0 to 255, all different: uint8[256,3], RGB.

  Bits 0, 3 and 6 of a label, in this order, are bits 7, 6 and 5 of its red; bits 1, 4 and 7 those of green; bits 2 and
  5 bits 7 and 6 of blue. So label 0 is black, the labels up to 7 differ by 128 in a channel, those up to 63 by 64 or more; a label
  can be read back from its colour.
  Source: the colour map of the PASCAL visual object classes challenge (Everingham et al. 2010), which many label files
  carry as their palette.
  """
  label = np.arange(256)
  bits = [(label >> i) & 1 for i in range(8)]
  red, green, blue = (
    sum(bit << (7 - place) for place, bit in enumerate(bits[channel::3])) for channel in range(3)
  )
  return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def regions(image: np.ndarray, colours: int, min_area: float, smooth: float) -> np.ndarray:
  """The labels uint8[H,W] of an image's regions uint8[H,W,3], by their size; those after 255 share its label."""
  small = _shrunk(image)
  clusters = cluster(_smoothed(small, smooth * inputs.side(small)), colours)
  numbers = merged(connected(clusters), min_area * clusters.size)
  _, first, number, areas = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
  rank = np.empty(len(areas), np.int64)
  rank[np.lexsort((first, -areas))] = np.arange(len(areas))  # equal areas: the one that begins first
  labels = np.minimum(rank, 255).astype(np.uint8)[number.reshape(numbers.shape)]
  return transforms.nearest(labels[..., None], *image.shape[:2])[..., 0]


def cluster(image: np.ndarray, colours: int) -> np.ndarray:
  """k-means in CIE Lab: i32[H,W].  It starts from ranges of brightness with equally many colours, so it draws nothing."""
  lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab).reshape(-1, 3)
  _, first, which = np.unique(image.reshape(-1, 3) @ [1, 256, 65536], return_index=True, return_inverse=True)
  rank = np.argsort(np.argsort(lab[first, 0], kind="stable"))
  count = min(colours, len(first))
  start = (rank * count // len(first))[which].astype(np.int32)[:, None]
  _, found, _ = cv2.kmeans(lab, count, start, ROUNDS, 1, cv2.KMEANS_USE_INITIAL_LABELS)
  return found.reshape(image.shape[:2])


def connected(clusters: np.ndarray) -> np.ndarray:
  """A number from 0 on for each connected part of a cluster: i32[H,W]."""
  numbers, count = np.zeros(clusters.shape, np.int32), 0
  for one in np.unique(clusters):
    parts, found = cv2.connectedComponents((clusters == one).astype(np.uint8), connectivity=4)
    numbers[found > 0] = found[found > 0] - 1 + count
    count += parts - 1
  return numbers


def merged(numbers: np.ndarray, least: float) -> np.ndarray:
  """Regions i32[H,W] of which those with fewer pixels than `least` are given to the region nearest to each pixel."""
  areas = np.bincount(numbers.ravel())
  stays = (areas >= least) | (np.arange(len(areas)) == areas.argmax())
  taken = ~stays[numbers]
  if not taken.any():
    return numbers
  _, nearest = cv2.distanceTransformWithLabels(
    taken.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
  )
  owner = np.zeros(nearest.max() + 1, np.int32)
  owner[nearest[~taken]] = numbers[~taken]
  return owner[nearest]


def _shrunk(image: np.ndarray) -> np.ndarray:
  factor = LARGEST / max(image.shape[:2])
  return image if factor >= 1 else cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def _smoothed(image: np.ndarray, radius: float) -> np.ndarray:
  return cv2.pyrMeanShiftFiltering(image, max(1.0, radius), 20.0, maxLevel=0) if radius else image
