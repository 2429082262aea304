"""A disk that is full, for what this process writes."""

import contextlib
import resource


@contextlib.contextmanager
def full():
  """In this context no file grows: a limit on their size, at which a write fails as it does on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
