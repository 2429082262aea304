"""Plots of what a run measured: its loss, a classifier's accuracy by noise level, scores of the images it draws.

Figures of their own, not pyplot's: no global state, no display.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.files import write_atomically
from jaxdiff.reporting import read_metrics


def loss_curve(metrics_jsonl: str | os.PathLike[str], out_png: str | os.PathLike[str]) -> bool:
  """Draws the loss (log scale, raw and smoothed), the learning rate and the gradient norm of a run.

  Returns False, and draws nothing, if no loss was logged yet.
  """
  import matplotlib
  from matplotlib.figure import Figure

  rows = [row for row in read_metrics(metrics_jsonl) if "loss" in row]
  if not rows:
    return False
  small = [
    (name, text) for name, text in _PANELS if any(math.isfinite(row.get(name, math.nan)) for row in rows)
  ]
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(8, 4.2 + 1.2 * len(small)), dpi=120, layout="constrained")
    axes = figure.subplots(
      1 + len(small), 1, sharex=True, height_ratios=[3.2] + [1] * len(small), squeeze=False
    )
    top, *panels = axes[:, 0]
    _draw(top, rows, "loss", "loss", log=True)
    top.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
    for axis, (name, text) in zip(panels, small, strict=True):
      _draw(axis, rows, name, text, log=name == "grad_norm")
    axes[-1, 0].set_xlabel("step")
    write_atomically(out_png, lambda file: figure.savefig(file, format="png"))
  return True


def accuracy_by_noise(
  levels: np.ndarray | Sequence[float],
  accuracies: Mapping[str, np.ndarray | Sequence[float]],
  num_classes: int,
  out_png: str | os.PathLike[str],
) -> np.ndarray:
  """Draws accuracies (name -> shares in [0, 1], one a level) over the noise level, with that of a guess.

  Returns the picture, u8[H,W,3].
  """
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    axis = figure.subplots()
    for (name, shares), color in zip(accuracies.items(), (_BLUE, _RED), strict=False):
      axis.plot(levels, np.asarray(shares) * 100, color=color, marker="o", markersize=4, label=name)
    axis.axhline(100 / num_classes, color="#888888", linestyle=":", label="a guess (top1)")
    axis.set(xlim=(-0.02, 1.02), ylim=(-2, 102), ylabel="accuracy, %")
    axis.set_xlabel("noise level, 2/pi arctan(sigma / alpha)")
    axis.legend(frameon=True, framealpha=0.9, edgecolor="none")
    png = _png(figure)
  write_atomically(out_png, lambda file: file.write(png))
  return _pixels(png)


def figures(
  points: Sequence[tuple[float, Mapping[str, float]]],
  axis: str,
  names: Mapping[str, str],
  out_png: str | os.PathLike[str],
) -> None:
  """Draws scores of images over a setting: a panel for distances, one for shares, one for accuracy against distance.

  points: (the setting's value, scores by name), in order; names: what people call a score.
  """
  import matplotlib
  from matplotlib.figure import Figure

  panels = [[name for name in panel if any(name in found for _, found in points)] for panel in _SCORES]
  panels = [panel for panel in panels if panel]
  pair = ("frechet", "accuracy")
  both = [(value, found[pair[0]], found[pair[1]]) for value, found in points if all(n in found for n in pair)]
  with matplotlib.rc_context(_STYLE):
    count = len(panels) + (len(both) > 1)
    figure = Figure(figsize=(4.6 * count, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for panel, place in zip(panels, axes, strict=False):
      for name, color in zip(panel, _COLORS, strict=False):
        x, y = zip(*[(value, found[name]) for value, found in points if name in found], strict=True)
        place.plot(x, y, color=color, marker="o", markersize=4, label=names[name])
      place.set_xlabel(axis)
      place.legend(frameon=True, framealpha=0.9, edgecolor="none")
    if len(both) > 1:
      _against(axes[-1], both, axis)
    write_atomically(out_png, lambda file: figure.savefig(file, format="png"))


def curves(
  x: np.ndarray | Sequence[float],
  panels: Mapping[str, Mapping[str, np.ndarray | Sequence[float]]],
  x_label: str,
  log: str = "",
) -> np.ndarray:
  """Draws lines over x, a panel for each name of the y axis, a line for each name in it; `log` says which axes are: x, y, xy.

  Returns the picture, u8[H,W,3].
  """
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(4.6 * len(panels), 3.6), dpi=100, layout="constrained")
    for place, (y_label, lines) in zip(
      figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
      for name, y in lines.items():
        place.plot(x, y, label=name, linewidth=1.5, marker="o" if len(x) < 12 else None, markersize=4)
      place.set(xlabel=x_label, ylabel=y_label)
      if "x" in log:
        place.set_xscale("log")
        place.set_xticks(x, [f"{value:g}" for value in x])
        place.minorticks_off()
      if "y" in log:
        place.set_yscale("log")
      if len(lines) > 1:
        place.legend(frameon=True, framealpha=0.9, edgecolor="none")
    return _pixels(_png(figure))


def paths(
  ways: Mapping[str, np.ndarray], points: np.ndarray, labels: np.ndarray, reach: float = 2.0
) -> np.ndarray:
  """Draws ways through the plane, a panel for each name, over the points that they should lead to, coloured by label.

  Shapes: ways: f[T,N,2] each, from start to end; points: f[M,2]; labels: i[M].  Returns the picture, u8[H,W,3].
  """
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(3.4 * len(ways), 3.6), dpi=100, layout="constrained")
    for place, (name, way) in zip(figure.subplots(1, len(ways), squeeze=False)[0], ways.items(), strict=True):
      for label in np.unique(labels):
        of_label = points[labels == label]
        place.scatter(*of_label.T, s=4, alpha=0.35, color=_COLORS[label % len(_COLORS)], linewidths=0)
      place.plot(way[..., 0], way[..., 1], color="#555555", linewidth=0.6, alpha=0.7)
      place.scatter(*way[-1].T, s=14, color="black", zorder=3)
      place.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=name)
    return _pixels(_png(figure))


def _png(figure: Any) -> bytes:
  drawn = io.BytesIO()
  figure.savefig(drawn, format="png")
  return drawn.getvalue()


def _pixels(png: bytes) -> np.ndarray:
  from PIL import Image

  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _against(place: Any, both: Sequence[tuple[float, float, float]], axis: str) -> None:
  """Accuracy against distance, the setting's value beside each point."""
  _, distance, accuracy = zip(*both, strict=True)
  place.plot(distance, np.array(accuracy) * 100, color=_BLUE, marker="o", markersize=4)
  for value, x, y in both:
    place.annotate(f"{value:g}", (x, y * 100), textcoords="offset points", xytext=(5, 4), fontsize=8)
  place.set(xlabel=f"Frechet distance, by {axis}", ylabel="class accuracy, %")


_SCORES = (("frechet",), ("precision", "recall", "coverage", "accuracy"))
_COLORS = ("#1f6fb4", "#c0392b", "#2e8b57", "#8e6bbf")
_PANELS = (("grad_norm", "gradient norm"), ("learning_rate", "learning rate"))
_BLUE, _RED = "#1f6fb4", "#c0392b"
_STYLE: Any = {
  "font.size": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": "#888888",
  "axes.grid": True,
  "grid.color": "#e6e6e6",
  "axes.axisbelow": True,
}


def _draw(axis: Any, rows: list[dict[str, float]], name: str, text: str, log: bool) -> None:
  from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

  steps = np.array([row["step"] for row in rows])
  values = np.array([row.get(name, math.nan) for row in rows], float)
  finite = np.isfinite(values)
  x, y = steps[finite], values[finite]
  log = log and bool((y > 0).all()) and len(y) > 0
  if name == "learning_rate" or len(y) < 20:
    axis.plot(x, y, color=_BLUE, linewidth=1.5, label=text, marker="o" if len(y) == 1 else None)
  else:
    axis.plot(x, y, color=_BLUE, alpha=0.25, linewidth=1, label=text)
    smooth = np.exp(_smoothed(np.log(y))) if log else _smoothed(y)
    axis.plot(x, smooth, color=_BLUE, linewidth=1.8, label="smoothed")
  if name == "loss":
    for step in steps[~finite][:1]:
      axis.axvline(step, color=_RED, linestyle=":", label=f"not finite at {step:.0f}")
  if log:
    axis.set_yscale("log")
    decades = np.log10(y.max() / y.min())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=20))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
  axis.set_ylabel(text)


def _smoothed(values: np.ndarray) -> np.ndarray:
  """A centred Gaussian mean, about a fortieth of the points wide, over what there is at the ends."""
  width = max(1.0, len(values) / 40)
  reach = math.ceil(3 * width)
  kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
  sums, weights = (np.convolve(v, kernel)[reach : reach + len(v)] for v in (values, np.ones_like(values)))
  return sums / weights
