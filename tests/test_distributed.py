"""How several processes are told of each other, and what they say of one that is lost."""

import os
import socket
from types import SimpleNamespace

import jax
import pytest

from jaxdiff import checkpoints, distributed, main, parallel
from jaxdiff.errors import UserError
from tests import small

LAUNCHERS = ("JAX_", "SLURM_", "OMPI_", "KUBERNETES_", "JOB_COMPLETION_INDEX", "TPU_", "MEGASCALE_")
ADDRESS = "10.0.0.1:8476"


@pytest.fixture
def launcher(monkeypatch):
  """A function that sets what a launcher leaves in the environment, of which there is nothing else."""
  for name in os.environ:
    if name.startswith(LAUNCHERS):
      monkeypatch.delenv(name)
  monkeypatch.setattr(distributed, "has_tpu", lambda: False)
  return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def test_a_process_of_its_own_is_not_joined_with_any(launcher, monkeypatch):
  joined = []
  monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda *args, **kwargs: joined.append(args))
  assert distributed.place_of() is None
  distributed.initialize(None)
  assert not joined and not distributed.is_several()
  assert distributed.leave(2) == 2


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (
      (ADDRESS, None, None),
      "--num_processes and --process_id are missing: a process of several needs --coord",
    ),
    ((None, 2, 0), "--coordinator is missing: a process of several needs --coordinator HOST:PORT"),
    (("10.0.0.1", 2, 0), "--coordinator is '10.0.0.1'; give HOST:PORT of process 0"),
    (("10.0.0.1:99999", 2, 0), "--coordinator is '10.0.0.1:99999'; give HOST:PORT"),
    ((ADDRESS, 0, 0), "--num_processes is 0; it must be at least 1"),
    ((ADDRESS, 2, 2), r"--process_id is 2; the processes of 2 \(--num_processes\) are 0 to 1"),
    ((ADDRESS, 2, -1), "--process_id is -1; the processes of 2"),
  ],
)
def test_flags_that_do_not_make_a_whole_are_told(flags, words, launcher):
  with pytest.raises(UserError, match=words):
    distributed.place_of(*flags)


def test_the_command_line_tells_it_in_one_line(launcher, capsys):
  assert main.main(["--config", "configs/dit_cfg.py", "--num_processes", "2"]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("jaxdiff: --coordinator and --process_id are missing")
  assert main.main(["--config", "configs/dit_cfg.py", "--heartbeat_seconds", "0"]) == 2
  assert "--heartbeat_seconds is 0; it must be at least 1" in capsys.readouterr().err
  several = ["--coordinator", ADDRESS, "--num_processes", "2", "--process_id", "1"]
  assert main.main(["--mode", "prepare", "--config", "configs/dit_cfg.py", *several]) == 2
  assert "--mode prepare runs in one process, and --coordinator tells of several" in capsys.readouterr().err
  assert main.main(["--mode", "doctor", *several]) == 2
  assert f"takes no other arguments, not '{ADDRESS}'" in capsys.readouterr().err


def test_doctor_looks_at_each_machine_of_a_cluster_by_itself(launcher, monkeypatch):
  launcher(SLURM_NTASKS="4", SLURM_STEP_NODELIST="node[1-2]")
  monkeypatch.setitem(main.MODES, "doctor", lambda config, workdir, flags: 0)
  assert main.main(["--mode", "doctor"]) == 0 and not distributed.is_several()


def test_an_address_alone_is_not_taken_for_one_process(launcher):
  launcher(JAX_COORDINATOR_ADDRESS=ADDRESS)
  with pytest.raises(UserError, match="nothing says how many processes there are: set JAX_NUM_PROCESSES"):
    distributed.place_of()
  launcher(JAX_NUM_PROCESSES="1", JAX_PROCESS_ID="0")
  assert distributed.place_of() is None


def test_flags_come_before_the_environment(launcher):
  launcher(SLURM_NTASKS="4", SLURM_STEP_NODELIST="node[1-2]")
  assert distributed.place_of(ADDRESS, 2, 1) == distributed.Place("--coordinator", ADDRESS, 2, 1)
  assert distributed.place_of(ADDRESS, 1, 0) is None, "the only process there is"


def test_slurm(launcher):
  launcher(SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_ID="7")
  assert distributed.place_of() is None, "the shell of a batch script is no task"
  launcher(SLURM_STEP_NODELIST="node[1-2]")
  assert distributed.place_of() == distributed.Place("Slurm")
  launcher(SLURM_STEP_NUM_TASKS="4")
  assert distributed.place_of() == distributed.Place("Slurm")
  launcher(SLURM_STEP_NUM_TASKS="1")
  assert distributed.place_of() is None, "salloc's shell is a step of one task, in a job of several"
  launcher(SLURM_NTASKS="1")
  assert distributed.place_of() is None


def test_open_mpi(launcher):
  launcher(OMPI_COMM_WORLD_SIZE="1", OMPI_COMM_WORLD_RANK="0")
  assert distributed.place_of() is None
  launcher(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1")
  with pytest.raises(UserError, match="does not say where the first one is: set JAX_COORDINATOR_ADDRESS"):
    distributed.place_of()
  launcher(JAX_COORDINATOR_ADDRESS=ADDRESS)
  assert distributed.place_of() == distributed.Place("Open MPI", ADDRESS, 2, 1)
  launcher(OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1:34911")
  assert distributed.place_of() == distributed.Place("Open MPI")


def test_kubernetes(launcher, monkeypatch):
  launcher(KUBERNETES_SERVICE_HOST="10.0.0.9", JOB_COMPLETION_INDEX="1")
  monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
  assert distributed.place_of() is None, "without its package nobody can ask the cluster"
  monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: object())
  assert distributed.place_of() == distributed.Place("Kubernetes")
  launcher(JAX_NUM_PROCESSES="2")
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES is set, but not JAX_COORDINATOR_ADDRESS"):
    distributed.place_of()
  launcher(JAX_COORDINATOR_ADDRESS=ADDRESS)
  assert distributed.place_of() == distributed.Place("JAX_COORDINATOR_ADDRESS", ADDRESS, 2, 1)
  launcher(JAX_NUM_PROCESSES="two")
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two'; give a whole number"):
    distributed.place_of()


def test_tpus(launcher, monkeypatch):
  launcher(TPU_WORKER_HOSTNAMES="localhost")
  assert distributed.place_of() is None
  launcher(MEGASCALE_NUM_SLICES="2")
  assert distributed.place_of() == distributed.Place("the TPU's metadata")
  launcher(MEGASCALE_NUM_SLICES="1", TPU_WORKER_HOSTNAMES="t-0,t-1")
  assert distributed.place_of() == distributed.Place("the TPU's metadata")
  monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
  asked = []
  monkeypatch.setattr(distributed, "_tpu_workers", lambda: asked.append(1) or "a:b:10.0.0.1,c:d:10.0.0.2")
  assert distributed.place_of() is None and not asked, "a machine without chips asks nobody"
  monkeypatch.setattr(distributed, "has_tpu", lambda: True)
  assert distributed.place_of() == distributed.Place("the TPU's metadata")


def test_a_taken_port_is_told():
  with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    port = server.getsockname()[1]
    with pytest.raises(UserError, match=rf"process 0 cannot listen at port {port} of 127.0.0.1:{port}"):
      distributed.initialize(distributed.Place("--coordinator", f"127.0.0.1:{port}", 2, 0))


def test_one_process_decides_for_itself():
  seen = object()  # no JSON: nothing is sent anywhere
  assert distributed.by_first(lambda: seen) is seen
  with pytest.raises(UserError, match="no"):
    distributed.by_first(lambda: (_ for _ in ()).throw(UserError("no")))


def test_all_wait_for_the_first_before_they_hear_from_it(monkeypatch):
  """A collective that is begun too early gives up: Gloo's first one after 30 s."""
  done = []
  monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
  monkeypatch.setattr(distributed, "wait_for_all", lambda name: done.append("waited"))
  monkeypatch.setattr(distributed, "_broadcast", lambda text: done.append("heard") or text)
  assert distributed.by_first(lambda: done.append("decided") or 7) == 7
  assert done == ["decided", "waited", "heard"]


GLOO = (
  "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read error: reset\nmore"
)


def led_to(error, cause):
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  ("error", "is_lost"),
  [
    (jax.errors.JaxRuntimeError(GLOO), True),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 crashed"), True),
    (ValueError(GLOO), True),
    (led_to(TimeoutError("a barrier"), jax.errors.JaxRuntimeError(GLOO)), True),
    (ValueError("the connection of layers"), False),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
    (led_to(TimeoutError("a barrier"), KeyError("x")), False),
    (OSError(28, "No space left on device"), False),
  ],
)
def test_a_lost_process_is_told_from_mistakes(error, is_lost, monkeypatch):
  assert not distributed.lost(error), "a process of its own loses none"
  monkeypatch.setattr(distributed, "is_several", lambda: True)
  assert bool(distributed.lost(error)) == is_lost and "\n" not in distributed.lost(error)


def test_a_process_lost_during_a_save_is_no_mistake_of_the_users(tmp_path, monkeypatch):
  def save(step, args):
    raise ValueError(GLOO)

  (tmp_path / "10").mkdir()
  manager = SimpleNamespace(all_steps=lambda: [10], directory=tmp_path, save=save)
  with pytest.raises(UserError, match="The last good checkpoint is step 10"):
    checkpoints.save(manager, 20, {}, {})
  monkeypatch.setattr(distributed, "is_several", lambda: True)
  with pytest.raises(ValueError, match="Gloo"):
    checkpoints.save(manager, 20, {}, {})


def test_pmap_is_of_one_process(monkeypatch):
  monkeypatch.setattr(parallel.jax, "process_count", lambda: 2)
  with pytest.raises(
    UserError, match="config.parallel.strategy=pmap runs in one process, and this is one of 2"
  ):
    parallel.make(small.config("dit", "parallel.strategy=pmap").parallel, 8)
