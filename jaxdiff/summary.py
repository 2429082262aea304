"""What a run is, told once at its start: the resolved config, its size, its devices and what a step costs."""

from __future__ import annotations

from typing import Any

import jax

from jaxdiff import configuration, models
from jaxdiff.types import PyTree


def describe(config: Any, params: PyTree, flops: float | None, num_examples: int) -> str:
  """Lines of text: every config value by section, then parameters, data, devices, tokens and FLOPs.

  flops are those of one whole train step on all devices, None where they are not known.
  """
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  devices = jax.devices()
  tokens = models.tokens(config.model, config.data.image_size)
  facts = {
    "parameters": f"{count:,}",
    "examples": f"{num_examples:,}",
    "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {jax.process_count()} process(es)",
    "tokens": f"{tokens:,} an image",
    "step": _flops(flops),
  }
  return "\n".join([*_sections(config), *(f"{name:<11} {text}" for name, text in facts.items())])


def _sections(config: Any) -> list[str]:
  sections: dict[str, list[str]] = {}
  for key, value in configuration.flatten(config).items():
    section, _, leaf = key.rpartition(".")
    sections.setdefault(section or "config", []).append(f"{leaf}={value}")
  return [f"{name:<11} {' '.join(values)}" for name, values in sections.items()]


def _flops(flops: float | None) -> str:
  return f"{flops / 1e9:,.1f} GFLOP" if flops else "FLOPs unknown: no compiler here counts them"
