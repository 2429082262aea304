"""XLA's flags: set where they are understood, never over the user's."""

import pytest

from jaxdiff import platform

FLAG = f"{platform.FUSION_FLAG}={platform.FUSION_TYPES}"


@pytest.mark.parametrize(
  ("given", "version", "on_cpu", "expected"),
  [
    ("", (0, 10, 2), True, FLAG),
    ("--xla_a=1", (0, 12, 0, 1), True, f"--xla_a=1 {FLAG}"),
    ("", (0, 10, 1), True, ""),
    ("", (0, 13), True, ""),
    ("", (0, 12), False, ""),
    (f"{platform.FUSION_FLAG}=", (0, 12), True, f"{platform.FUSION_FLAG}="),
  ],
)
def test_flags(given, version, on_cpu, expected):
  assert platform.xla_flags(given, version, on_cpu) == expected


def test_version_and_platforms(monkeypatch):
  assert platform.jaxlib_version() >= (0, 10)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert platform.cpu_only()
  monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
  assert not platform.cpu_only()
