"""Several processes as one run: how they find each other, what they agree on, how they end.

Every process runs the same program over all devices of all of them.  Process 0 writes logs and pictures, and decides what
only one can decide (`by_first`).  JAX's runtime carries heartbeats: where a process is lost, the others are ended.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdiff.errors import Outage, UserError, first_line
from jaxdiff.files import writing
from jaxdiff.watchdog import STATUS

logger = logging.getLogger("jaxdiff")

HEARTBEAT_SECONDS = 100  # JAX's own defaults
CONNECT_SECONDS = 300
SLACK_SECONDS = (
  3600  # that JAX is given beyond ours: where its own time is over it ends the process with a dump
)
LONGEST_WAIT = (
  7 * 24 * 3600
)  # seconds that processes wait for one that still computes; heartbeats tell of a lost one
LINGER_SECONDS = 3.0  # that process 0, with which all end, leaves the others to fail with words of their own
SHARED_SECONDS = 10.0  # until what one host writes is seen by the others
# in errors of JAX's runtime, some of which come as a ValueError, when what others were to send does not come
LOST = re.compile("(?=[A-Z_]+: )(?is:.*(gloo|nccl|heartbeat|unavailable|connection|coordination))")
BLOCK = 4096  # bytes of a message: each length is compiled once

METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"
FLAGS = ("--coordinator", "--num_processes", "--process_id")


class Place(NamedTuple):
  """Where this process is among those of a run; what is None JAX's own detection of clusters finds out."""

  told_by: str  # for people
  coordinator: str | None = None  # HOST:PORT of process 0
  num_processes: int | None = None
  process_id: int | None = None


# How they find each other


def place_of(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Place | None:
  """The place that the flags give, or else the environment; None for a process of its own.

  Raises UserError for flags, or variables, that do not make a whole.
  """
  given = dict(zip(FLAGS, (coordinator, num_processes, process_id), strict=True))
  missing = [flag for flag, value in given.items() if value is None]
  if len(missing) == len(FLAGS):
    return _of_environment(os.environ)
  if missing:
    raise UserError(
      f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: a process of several needs "
      "--coordinator HOST:PORT (where process 0 listens), --num_processes N and --process_id 0..N-1."
    )
  return _checked(Place("--coordinator", coordinator, num_processes, process_id), FLAGS)


def _of_environment(environ: Mapping[str, str]) -> Place | None:
  """What a launcher has left in the environment."""
  for of_launcher in (_of_variables, _of_slurm, _of_open_mpi, _of_kubernetes, _of_tpu):
    if place := of_launcher(environ):
      return place
  if "JAX_COORDINATOR_ADDRESS" in environ and "JAX_NUM_PROCESSES" not in environ:
    raise UserError(
      "JAX_COORDINATOR_ADDRESS is set, but nothing says how many processes there are: set JAX_NUM_PROCESSES and "
      "JAX_PROCESS_ID too, or unset it."
    )
  return None


def _of_variables(environ: Mapping[str, str]) -> Place | None:
  """JAX_COORDINATOR_ADDRESS and the like, as a JobSet's template sets them; Kubernetes numbers the pods of an indexed Job."""
  if "JAX_NUM_PROCESSES" not in environ:
    return None
  number = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environ else "JOB_COMPLETION_INDEX"
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", number)
  if missing := [name for name in names if not environ.get(name)]:
    raise UserError(
      f"JAX_NUM_PROCESSES is set, but not {' and '.join(missing)}: a process of several needs JAX_COORDINATOR_ADDRESS "
      "(HOST:PORT where process 0 listens) and JAX_PROCESS_ID (or Kubernetes' JOB_COMPLETION_INDEX) too."
    )
  address, count, index = (environ[name] for name in names)
  return _checked(Place(names[0], address, _integer(names[1], count), _integer(names[2], index)), names)


def _of_slurm(environ: Mapping[str, str]) -> Place | None:
  """A task of `srun`.

  A batch script's own shell has no node list of a step, and the shell that `salloc` opens is a step of one task in a job of
  several: what runs there is a process of its own.
  """
  tasks = (
    int(environ.get(name) or 1) for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS") if name in environ
  )
  return Place("Slurm") if "SLURM_STEP_NODELIST" in environ and min(tasks, default=1) > 1 else None


def _of_open_mpi(environ: Mapping[str, str]) -> Place | None:
  """A process of `mpirun`; since Open MPI 5 it does not say where process 0 is."""
  count = int(environ.get("OMPI_COMM_WORLD_SIZE") or 1)
  if count == 1:
    return None
  if "OMPI_MCA_orte_hnp_uri" in environ:
    return Place("Open MPI")
  address, names = environ.get("JAX_COORDINATOR_ADDRESS"), ("JAX_COORDINATOR_ADDRESS", *FLAGS[1:])
  if not address:
    raise UserError(
      f"Open MPI has started {count} processes and does not say where the first one is: set JAX_COORDINATOR_ADDRESS, as in "
      "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT."
    )
  return _checked(Place("Open MPI", address, count, int(environ["OMPI_COMM_WORLD_RANK"])), names)


def _of_kubernetes(environ: Mapping[str, str]) -> Place | None:
  """A pod of an indexed Job that may ask the cluster for the others (pip install kubernetes, and the rights to list pods)."""
  is_indexed = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
  return Place("Kubernetes") if is_indexed and importlib.util.find_spec("kubernetes") else None


def _of_tpu(environ: Mapping[str, str]) -> Place | None:
  """A worker of a TPU slice of several hosts, or of several slices."""
  hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
  if hosts is None and has_tpu() and "TPU_SKIP_MDS_QUERY" not in environ:
    hosts = _tpu_workers()
  count = len((hosts or "").split(",")) * int(environ.get("MEGASCALE_NUM_SLICES") or 1)
  return Place("the TPU's metadata") if count > 1 else None


def has_tpu() -> bool:
  """Whether this machine has TPU chips and what drives them."""
  chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _tpu_workers() -> str:
  """The workers of a Cloud TPU, with commas between; empty where nobody knows."""
  request = urllib.request.Request(METADATA, headers={"Metadata-Flavor": "Google"})
  try:
    with urllib.request.urlopen(request, timeout=2) as answer:
      return answer.read().decode()
  except OSError:
    return ""


def _checked(place: Place, names: tuple[str, ...]) -> Place | None:
  """The place; None for the only process there is.  Raises UserError, naming what is wrong."""
  address, count, index = place.coordinator, place.num_processes, place.process_id
  assert address is not None and count is not None and index is not None
  found = re.fullmatch(r"(.+):(\d{1,5})", address)
  if not found or not 0 < int(found[2]) < 2**16:
    raise UserError(
      f"{names[0]} is {address!r}; give HOST:PORT of process 0 with a free port, as in 10.0.0.1:8476."
    )
  if count < 1:
    raise UserError(f"{names[1]} is {count}; it must be at least 1.")
  if not 0 <= index < count:
    raise UserError(f"{names[2]} is {index}; the processes of {count} ({names[1]}) are 0 to {count - 1}.")
  return place if count > 1 else None


def _integer(name: str, text: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise UserError(f"{name} is {text!r}; give a whole number.") from None


def initialize(
  place: Place | None, heartbeat_seconds: int = HEARTBEAT_SECONDS, connect_seconds: int = CONNECT_SECONDS
) -> None:
  """Joins the run that `place` is in, before JAX's backend starts; for a process of its own it does nothing.

  A process whose heartbeats stay away for heartbeat_seconds is lost, and ends all.  One that does not meet the others
  within connect_seconds says so in a line and ends with status 74: what starts it may start it again.
  Raises UserError where the coordinator cannot listen, or a cluster's own description does not do.
  """
  for flag, seconds in (("--heartbeat_seconds", heartbeat_seconds), ("--connect_seconds", connect_seconds)):
    if seconds < 1:
      raise UserError(f"{flag} is {seconds}; it must be at least 1.")
  if place is None:
    return
  _check_port(place)
  alarm = threading.Timer(connect_seconds, _give_up, (place, connect_seconds))
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      place.coordinator,
      place.num_processes,
      place.process_id,
      cluster_detection_method="deactivate" if place.told_by == "JAX_COORDINATOR_ADDRESS" else None,
      initialization_timeout=connect_seconds + SLACK_SECONDS,
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=LONGEST_WAIT,
    )
  except (RuntimeError, ValueError) as error:
    reason = first_line(error)[:300]
    raise UserError(f"several processes ({place.told_by}) could not be set up: {reason}") from error
  finally:
    alarm.cancel()


def _check_port(place: Place) -> None:
  """Raises UserError where process 0 is to listen at a port that is taken: JAX's runtime would crash."""
  if place.coordinator is None or place.process_id != 0:
    return
  port = int(place.coordinator.rpartition(":")[2])
  family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  try:
    socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
  except OSError as error:
    raise UserError(
      f"process 0 cannot listen at port {port} of {place.coordinator} ({place.told_by}): {error.strerror}. Give another port."
    ) from None


def _give_up(place: Place, seconds: int) -> None:
  who = "this process" if place.process_id is None else f"process {place.process_id} of {place.num_processes}"
  where = f"{place.coordinator} ({place.told_by})" if place.coordinator else f"where {place.told_by} says"
  logger.error(
    "jaxdiff: %s has not met the others at %s within %d s (--connect_seconds): process 0 has to listen there, and all have "
    "to be started.", who, where, seconds,
  )  # fmt: skip
  os._exit(STATUS)


# What they agree on


def is_several() -> bool:
  """Whether this process is one of several.  Does not start JAX's backend."""
  return jax.distributed.is_initialized()


def is_first() -> bool:
  """Whether this process is the one that writes and tells: the first, or the only one."""
  return jax.process_index() == 0


def by_first(function: Callable[[], Any]) -> Any:
  """What function() returns in process 0, in every process: all wait for it.  In several it has to be a JSON value.

  Raises in every process the UserError, or Outage, that function() raises in process 0.
  """
  if jax.process_count() == 1:
    return function()
  said: dict[str, Any] = {}
  if is_first():
    try:
      said = {"value": function()}
    except UserError as error:
      said = {"error": str(error), "may_pass": isinstance(error, Outage)}
  wait_for_all(
    "by_first"
  )  # a collective gives up sooner than function() may take: Gloo's first one after 30 s
  said = json.loads(_broadcast(json.dumps(said).encode()))
  if "error" in said:
    raise (Outage if said["may_pass"] else UserError)(said["error"])
  return said["value"]


def _broadcast(text: bytes) -> bytes:
  """Process 0's text in every process."""
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  padded = np.zeros(length + -length % BLOCK, np.uint8)
  if is_first():
    padded[:length] = np.frombuffer(text, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].astype(np.uint8).tobytes()


def to_host(array: jax.Array) -> np.ndarray:
  """The whole array, in every process, wherever its parts lie."""
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def wait_for_all(name: str) -> None:
  """Waits until every process is here, however long one still computes.  `name` may be used again."""
  if jax.process_count() > 1:
    import orbax.checkpoint as ocp  # half a second, which `--help` need not take

    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=LONGEST_WAIT * 1000)


def check_shared(folder: Path) -> None:
  """Raises UserError, in every process, where one does not see what process 0 writes into a folder that is there."""
  if jax.process_count() == 1:
    return
  mark = folder / by_first(lambda: _mark(folder))
  deadline = time.monotonic() + SHARED_SECONDS
  while not (sees := mark.exists()) and time.monotonic() < deadline:
    time.sleep(0.1)
  blind = np.flatnonzero(~np.asarray(multihost_utils.process_allgather(np.bool_(sees))))
  if is_first():
    mark.unlink()
  if len(blind):
    raise UserError(
      f"process {blind[0]} of {jax.process_count()} does not see {str(folder)!r} of process 0, on "
      f"{by_first(socket.gethostname)}: give one that all hosts share (--workdir, or config.train.checkpoint_dir)."
    )


def _mark(folder: Path) -> str:
  name = f".shared-{socket.gethostname()}-{os.getpid()}"
  with writing(folder / name):
    (folder / name).touch()
  return name


# How they end


def lost(error: BaseException) -> str:
  """Why an error, or what has led to it, says that another process was lost; empty where it says something else."""
  if not is_several():
    return ""
  if (
    isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    and LOST.match(str(error))
    and "gs://" not in str(error)
  ):
    return first_line(error)[:200]
  before = error.__cause__ or error.__context__
  return lost(before) if before else ""


def leave(status: int) -> int:
  """Ends a process of several at once, as the others may wait elsewhere and never come; alone it returns the status."""
  if not is_several():
    return status
  if is_first():
    time.sleep(LINGER_SECONDS)
  logging.shutdown()
  os._exit(status)
