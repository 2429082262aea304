"""How near things are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxdiff import errors
from jaxdiff.data.hints import inputs, networks
from jaxdiff.errors import UserError

# what a map's values are -> f64, larger where something is nearer
NEAR: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "bright": lambda m: m,
  "dark": lambda m: -m,
  "distance": lambda m: np.divide(1, m, out=np.zeros_like(m), where=m > 0),
}


def depth(
  image: np.ndarray, *, near: str = "bright", onnx: str = "", scaling: str = "imagenet"
) -> np.ndarray:
  """How near each pixel of an image is, by a network that estimates depth from one image.

  `onnx`: its file; it gives [N,h,w] or [N,1,h,w]; `scaling`: of its pixels, a key of data.onnx_file.SCALINGS; `near`:
  what it gives, as in depth_from_map ("bright" for MiDaS and its kind, "distance" for metric depth).

  Shapes: image: uint8[H,W,1 or 3].  Returns uint8[H,W,1].
  Raises UserError without a network: depth cannot be computed from pixels alone.
  """
  inputs.check(image)
  check_near(near)
  if not onnx:
    raise UserError(
      "hint 'depth' needs a depth map or a network: use a source with depth maps (shapes), give a folder of them as "
      "config.data.hint_maps, or a network as config.data.hint='depth(onnx=\"FILE\")'."
    )
  return normalised(networks.depths(image, onnx, scaling), near)


def depth_from_map(depth_map: np.ndarray, near: str = "bright") -> np.ndarray:
  """A depth map as a hint: the nearest point of this image is 255, the farthest 0.

  With v = the map's values for `near` "bright" (inverse depth, or any map that is brighter where something is nearer),
  minus its values for "dark", and their inverse for "distance" (0: not measured, taken for infinitely far):
  255 (v - min v) / (max v - min v), rounded.  So scale and shift of the inverse depth, which a network such as MiDaS
  leaves open, do not matter. A map that is constant gives 0 everywhere.

  Shapes: depth_map: uint8 or uint16, [H,W].  Returns uint8[H,W,1].
  Raises: TypeError for any other array; UserError for an unknown `near`.
  Source: Ranftl et al. 2020, "Towards robust monocular depth estimation" (MiDaS): how it shows inverse depth.
  """
  if depth_map.dtype not in (np.uint8, np.uint16) or depth_map.ndim != 2:
    raise TypeError(f"a depth map is uint8 or uint16 [H,W], not {depth_map.dtype}{list(depth_map.shape)}")
  check_near(near)
  return normalised(depth_map, near)


def normalised(depth_map: np.ndarray, near: str) -> np.ndarray:
  """depth_from_map, of a map of any type."""
  v = NEAR[near](depth_map.astype(np.float64))
  low, high = v.min(), v.max()
  return np.round(255 * (v - low) / (high - low or 1)).astype(np.uint8)[..., None]


def check_near(near: str) -> None:
  if near not in NEAR:
    raise errors.unknown("near of hint 'depth' (config.data.hint)", near, NEAR)
