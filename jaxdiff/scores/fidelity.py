"""How well images obey the hints they were asked for with: each hint against the one found in the image drawn from it.

    score = fidelity.FIDELITY["canny"]
    score(hints, np.stack([detect(sample) for sample in samples]))

Compare a figure with that of images drawn without hints (its floor) and of real images (its ceiling).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage, stats


def edges_f1(asked: np.ndarray, found: np.ndarray, tolerance: int = 1) -> float:
  """F1 of edge pixels, by image, then the mean: 2 P R / (P + R), in [0, 1].

  P, precision: the share of found edge pixels with an asked one within tolerance; R, recall: the share of asked ones with
  a found one.  Distance is Chebyshev's, in pixels.  Two images without edges agree: 1; if one alone has none it is 0.

  Shapes: asked, found: bool[N,H,W], or integers, where all but 0 is edge; tolerance >= 0.
  Raises: ValueError that says what is wrong.
  Source: Martin, Fowlkes and Malik 2004, section 3, but for the matching: theirs pairs edge pixels one to one, here each
  looks for any other (a dilation), so that edges drawn twice within the tolerance cost nothing.
  """
  asked, found = _checked(asked, found, "biu")
  if tolerance < 0:
    raise ValueError(f"tolerance={tolerance}, but a distance is at least 0")
  asked, found = asked != 0, found != 0
  pixels = (1, 2)
  size = (1, 2 * tolerance + 1, 2 * tolerance + 1)
  near_asked, near_found = (
    ndimage.maximum_filter(edges.view(np.uint8), size, mode="constant") > 0 for edges in (asked, found)
  )
  precision = _share((found & near_asked).sum(pixels), found.sum(pixels))
  recall = _share((asked & near_found).sum(pixels), asked.sum(pixels))
  f1 = _share(2 * precision * recall, precision + recall)
  f1[~asked.any(pixels) & ~found.any(pixels)] = 1
  return float(f1.mean())


def mean_iou(asked: np.ndarray, found: np.ndarray, num_labels: int) -> float:
  """Intersection over union of each label's pixels, counted over the whole set, then the mean over labels, in [0, 1].

  For label l, |asked = l and found = l| / |asked = l or found = l|, of the labels that occur at all.  Counts over the set,
  not by image, are what the field means by mIoU: a small region in one image does not weigh as much as a large one.

  Shapes: asked, found: integers [N,H,W] in 0..num_labels-1.
  Raises: ValueError that says what is wrong.
  Source: Everingham et al. 2010 (PASCAL VOC), section 4.2.3; Long, Shelhamer and Darrell 2015, section 5.
  """
  asked, found = _checked(asked, found, "iu")
  for name, labels in (("asked", asked), ("found", found)):
    if labels.min() < 0 or labels.max() >= num_labels:
      raise ValueError(
        f"{name}: labels {labels.min()} to {labels.max()}, but they must be 0 to {num_labels - 1}"
      )
  of_asked, of_found = (np.bincount(labels.ravel(), minlength=num_labels) for labels in (asked, found))
  both = np.bincount(asked[asked == found], minlength=num_labels)
  either = of_asked + of_found - both
  return float((both[either > 0] / either[either > 0]).mean())


def rank_correlation(asked: np.ndarray, found: np.ndarray) -> float:
  """Spearman's rho of the pixels of each image, then the mean, in [-1, 1]: it knows no scale, only what is nearer.

  The correlation of ranks, equal values having the mean of theirs.  Of two constant maps it is 1, of a constant one and
  another 0: they have no order in common.

  Shapes: asked, found: real numbers [N,H,W].
  Raises: ValueError that says what is wrong.
  Source: Spearman 1904.
  """
  asked, found = _checked(asked, found, "biuf")
  return float(np.mean([_spearman(a.ravel(), b.ravel()) for a, b in zip(asked, found, strict=True)]))


def _edges(asked: np.ndarray, found: np.ndarray) -> float:
  """edges_f1 of pixels brighter than 127."""
  return edges_f1(*(pixels.max(axis=-1) > 127 for pixels in _hints(asked, found)))


def _regions(asked: np.ndarray, found: np.ndarray) -> float:
  """mean_iou of colours, each one a label."""
  asked, found = _hints(asked, found)
  colours = np.stack([asked, found]).astype(np.uint32)
  codes = (colours << (8 * np.arange(colours.shape[-1], dtype=np.uint32))).sum(axis=-1)
  unique, labels = np.unique(codes, return_inverse=True)
  of_asked, of_found = labels.reshape(codes.shape)
  return mean_iou(of_asked, of_found, len(unique))


def _depth(asked: np.ndarray, found: np.ndarray) -> float:
  """rank_correlation of the mean over channels."""
  return rank_correlation(*(pixels.mean(axis=-1) for pixels in _hints(asked, found)))


# By kind of hint: (asked, found) -> float, the better the larger, at most 1.  Both uint8[N,H,W,Ch], as detectors give them.
FIDELITY: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
  "canny": _edges,
  "hough": _edges,
  "scribble": _edges,
  "segmentation": _regions,
  "depth": _depth,
}


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
  a, b = (stats.rankdata(values) - (values.size + 1) / 2 for values in (a, b))
  varies = a.any(), b.any()
  if not all(varies):
    return float(varies[0] == varies[1])
  return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))  # rounding may go beyond


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """part / whole, 0 where there is nothing."""
  return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)


def _checked(
  asked: np.ndarray, found: np.ndarray, kinds: str, axes: str = "N,H,W"
) -> tuple[np.ndarray, np.ndarray]:
  """Both as arrays that can be compared.  Raises ValueError that names the one that is wrong."""
  asked, found = np.asarray(asked), np.asarray(found)
  for name, maps in (("asked", asked), ("found", found)):
    if maps.ndim != len(axes.split(",")) or not maps.size:
      raise ValueError(f"{name}: shape {maps.shape}, but it must be [{axes}], none of them 0")
    if maps.dtype.kind not in kinds:
      raise ValueError(f"{name}: values of type {maps.dtype}, which it cannot be made of")
    if not np.isfinite(maps).all():
      raise ValueError(f"{name}: all values must be finite")
  if asked.shape != found.shape:
    raise ValueError(f"asked: shape {asked.shape}, but found: {found.shape}; compare maps of one size")
  return asked, found


def _hints(asked: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  for name, hints in (("asked", asked), ("found", found)):
    if np.asarray(hints).dtype != np.uint8:
      raise ValueError(f"{name}: values of type {np.asarray(hints).dtype}, but hints are uint8")
  return _checked(asked, found, "u", "N,H,W,Ch")
