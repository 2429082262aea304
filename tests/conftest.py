"""Four simulated devices for every test in this process; tests of what a user sees start subprocesses without them.

What is compiled is kept for the session, in a folder that its worker processes share: many tests compile the same tiny step.
"""

import os
import tempfile

import hypothesis
import pytest

# The same examples in every run, however slow the machine is: what is compiled in the first one takes its time.
hypothesis.settings.register_profile(
  "repeatable", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")

# Made by the process that starts the workers, which inherit its environment.
if "JAXDIFF_TESTS_CACHE" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix="jaxdiff-tests-")
  os.environ["JAXDIFF_TESTS_CACHE"] = _CACHE.name

# XLA:CPU ends the process when a simulated device keeps the others waiting for 40 s, which a busy machine may take.
FLAGS = "--xla_force_host_platform_device_count=4 --xla_cpu_collective_call_terminate_timeout_seconds=300"
if FLAGS not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ["XDG_CACHE_HOME"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["JAXDIFF_TESTS_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What platform.with_huge_pages asks for: programs that tests start need not start anew for it.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
  """Commands are given as a user gives them, from the folder that holds configs/."""
  monkeypatch.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
