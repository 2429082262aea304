"""Several processes as one run: two real ones on this machine, over the loopback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxdiff import locks, spikes
from tests import small
from tests.test_distributed import LAUNCHERS
from tests.test_main import equal, last_state

AGAIN, HUNG = 85, 74

TRAIN = (
  "--config", "configs/dit_cfg.py", *(f"--{line}" for line in small.arguments()), "--requeue_status", str(AGAIN),
)  # fmt: skip
LONG = (
  "--config.train.checkpoint_every=10", "--config.train.sample_every=0", "--config.train.steps=100",
  "--config.optim.decay=constant", "--config.sample.num=10",
)  # fmt: skip


def start(workdir, *arguments, devices=1, joined=(), variables=()):
  flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_collective_call_terminate_timeout_seconds=300"
  environment = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS) or k == "JAX_PLATFORMS"}
  environment |= {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"]}
  environment |= dict(variables)
  command = [sys.executable, "-m", "jaxdiff.main", *joined, "--workdir", str(workdir), *arguments]
  return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def start_several(workdir, *arguments, devices=1, count=2, heartbeat=10, variables=()):
  """Processes that are one run, in a workdir, or each in one of a list."""
  workdirs = workdir if isinstance(workdir, list) else [workdir] * count
  port = free_port()
  joined = (
    "--coordinator",
    f"127.0.0.1:{port}",
    "--num_processes",
    str(count),
    "--heartbeat_seconds",
    str(heartbeat),
  )
  return [
    start(each, *arguments, devices=devices, joined=(*joined, "--process_id", str(i)), variables=variables)
    for i, each in enumerate(workdirs)
  ]


def free_port():
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def finish(processes):
  """(their exit statuses, what they said)."""
  try:
    texts = [process.communicate(timeout=240)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], texts


def done(processes):
  statuses, texts = finish(processes)
  assert statuses == [0] * len(processes), "\n".join(texts)
  return texts


def wait_for(workdir, pattern, processes):
  wait_until(lambda: any(workdir.glob(pattern)), processes)


def wait_until(condition, processes, seconds=200):
  deadline = time.monotonic() + seconds
  while not condition():
    assert all(p.poll() is None for p in processes), "it ended too soon:\n" + finish(processes)[1][0]
    assert time.monotonic() < deadline
    time.sleep(0.02)


def steps_saved(workdir):
  return sorted(int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit())


def losses(workdir):
  path = workdir / "metrics.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """What one process with two devices leaves after 100 steps."""
  os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  workdir = tmp_path_factory.mktemp("one")
  done([start(workdir, *TRAIN, *LONG, devices=2)])
  return workdir


@pytest.mark.slow
def test_two_processes_are_the_run_of_one(one, tmp_path):
  first, second = done(start_several(tmp_path, *TRAIN, *LONG))
  assert "Done: 100 steps" in first and "2 x cpu (cpu), 2 process(es)" in first
  assert "Done" not in second and "train " not in second, "only the first one tells"
  assert equal(last_state(tmp_path), last_state(one))
  assert losses(tmp_path) == losses(one)
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in one.iterdir())


def disturb(workdir, hit, number, *arguments):
  """Sends a signal to some of two processes once they have saved a step; their exit statuses and what they said."""
  before = steps_saved(workdir)
  processes = start_several(workdir, *TRAIN, *LONG, *arguments)
  wait_until(lambda: steps_saved(workdir)[-1:] > before[-1:], processes)
  for i in hit:
    processes[i].send_signal(number)
  return finish(processes)


@pytest.mark.slow
def test_sigterm_to_any_saves_the_same_step_in_all(tmp_path):
  disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
  longer = "--config.train.steps=300"
  for hit in ((1,), (0,), (0, 1)):
    statuses, texts = disturb(disturbed, hit, signal.SIGTERM, longer)
    assert statuses == [AGAIN, AGAIN], "\n".join(texts)
    stopped = int(re.search(r"Stopped after step (\d+), saved", texts[0])[1])
    assert steps_saved(disturbed)[-1] == stopped < 300, "the signal came too late to test anything"
  for workdir in (disturbed, undisturbed):
    done([start(workdir, *TRAIN, *LONG, longer, devices=2)])
  assert equal(last_state(disturbed), last_state(undisturbed))


@pytest.mark.slow
def test_sigterm_before_the_first_step_stops_all(tmp_path):
  processes = start_several(
    tmp_path, *TRAIN, *LONG, variables={"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
  )
  wait_for(tmp_path, "config.json", processes)
  processes[1].send_signal(signal.SIGTERM)
  statuses, texts = finish(processes)
  assert statuses == [AGAIN, AGAIN], "\n".join(texts)
  assert "Stopped before a step was taken" in texts[0]


@pytest.mark.slow
def test_sigterm_in_a_preview_after_a_save_stops_all(tmp_path):
  processes = start_several(
    tmp_path, *TRAIN, *LONG, "--config.train.sample_every=10", "--config.train.steps=100000"
  )
  for path in ("checkpoints/20", "unshown"):
    wait_for(tmp_path, path, processes)
  processes[1].send_signal(signal.SIGTERM)
  statuses, texts = finish(processes)
  assert statuses == [AGAIN, AGAIN], "\n".join(texts)
  assert steps_saved(tmp_path)[-1] == int(re.search(r"Stopped after step (\d+), saved", texts[0])[1])


@pytest.mark.slow
def test_when_one_is_lost_the_other_ends_and_both_can_go_on(one, tmp_path):
  for lost in (1, 0):
    statuses, texts = disturb(tmp_path, (lost,), signal.SIGKILL)
    assert statuses[lost] == -signal.SIGKILL, "it came too late to test anything"
    assert statuses[1 - lost] in (HUNG, -signal.SIGABRT), "\n".join(texts)
    assert statuses[1 - lost] != HUNG or "another process was lost" in texts[1 - lost]
  done([start(tmp_path, *TRAIN, *LONG, devices=2)])
  assert equal(last_state(tmp_path), last_state(one))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("heartbeat", "stall_seconds", "status", "words"),
  [(10, 600, -signal.SIGABRT, "heartbeat"), (1000, 10, HUNG, "a step has taken 1")],
)
def test_a_silent_process_is_noticed(heartbeat, stall_seconds, status, words, tmp_path):
  """By JAX's runtime after the heartbeat, or, where that is long, by the watchdog of the process that waits for it."""
  stall = (f"--config.train.stall_seconds={stall_seconds}", "--config.train.checkpoint_every=100000")
  processes = start_several(
    tmp_path, *TRAIN, *LONG, *stall, "--config.train.steps=100000", heartbeat=heartbeat
  )
  try:
    wait_until(lambda: max(losses(tmp_path), default=0) >= 50, processes)
    processes[1].send_signal(signal.SIGSTOP)
    assert processes[0].wait(timeout=120) == status
  finally:
    processes[1].kill()
    texts = finish(processes)[1]
  assert words in texts[0].lower(), texts[0]


@pytest.mark.slow
def test_the_number_of_processes_may_change(one, tmp_path):
  for count, steps in ((1, 20), (2, 40), (1, 100)):
    arguments = (*TRAIN, *LONG, f"--config.train.steps={steps}", "--allow_config_change")
    done([start(tmp_path, *arguments, devices=2)] if count == 1 else start_several(tmp_path, *arguments))
    assert steps_saved(tmp_path)[-1] == steps
  assert equal(last_state(tmp_path), last_state(one))


@pytest.mark.slow
def test_four_processes_go_on_from_one_and_two(tmp_path):
  """Of four devices: the same examples, noise and losses but for the order of sums, which goes with the processes."""
  undisturbed, changing = tmp_path / "undisturbed", tmp_path / "changing"
  done([start(undisturbed, *TRAIN, *LONG, "--config.train.steps=30", devices=4)])
  for count, steps in ((2, 10), (1, 20), (4, 30)):
    arguments = (*TRAIN, *LONG, f"--config.train.steps={steps}", "--allow_config_change")
    devices = 4 // count
    several = start_several(changing, *arguments, devices=devices, count=count) if count > 1 else None
    done(several or [start(changing, *arguments, devices=devices)])
    assert steps_saved(changing)[-1] == steps
  found, wanted = losses(changing), losses(undisturbed)
  assert found.keys() == wanted.keys() and max(wanted) == 30
  np.testing.assert_allclose([found[step] for step in wanted], list(wanted.values()), rtol=1e-6)


@pytest.mark.slow
def test_two_processes_share_one_state_by_halves(tmp_path):
  """fsdp: no process holds all of the state, which they save and restore together; wide enough that leaves are split."""
  wide = ("--config.model.width=64", "--config.parallel.fsdp=2", "--allow_config_change")
  done([start(tmp_path / "one", *TRAIN, *LONG, *wide, "--config.train.steps=30", devices=2)])
  for steps in (20, 30):
    done(start_several(tmp_path / "two", *TRAIN, *LONG, *wide, f"--config.train.steps={steps}"))
  assert equal(last_state(tmp_path / "two"), last_state(tmp_path / "one"))


@pytest.mark.slow
def test_two_processes_distil_as_one(one, tmp_path):
  """Students are left by the first process, in the middle of the run, as the others wait."""
  command = (
    "--config", "configs/distill_cfg.py", *(f"--{line}" for line in small.arguments("distill")),
    f"--config.teacher.workdir={one}", "--config.train.steps=0",
  )  # fmt: skip
  alone, both = tmp_path / "alone", tmp_path / "both"
  done([start(alone, *command, devices=2)])
  done(start_several(both, *command))
  assert equal(last_state(both), last_state(alone))
  left = [sorted(path.name for path in workdir.glob("steps_*")) for workdir in (alone, both)]
  assert left[0] == left[1] and len(left[0]) > 1


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_by_all(one, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(one, workdir)
  victim = max((workdir / "checkpoints" / "100" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
  text = bytearray(victim.read_bytes())
  text[len(text) // 2] ^= 1
  victim.write_bytes(text)
  first, second = done(start_several(workdir, *TRAIN, *LONG))
  assert "The checkpoint of step 100 is damaged" in first and "damaged" not in second
  assert "The one before it, of step 90, is taken" in first and (workdir / "damaged" / "100").is_dir()
  assert equal(last_state(workdir), last_state(one))


@pytest.mark.slow
def test_sampling_draws_the_same_images(one, tmp_path):
  command = ("--mode", "sample", "--config.sample.num=13", "--config.sample.batch_size=8")
  drawn = {}
  for count in (1, 2):
    workdir = tmp_path / str(count)
    shutil.copytree(one, workdir)
    done([start(workdir, *command, devices=2)] if count == 1 else start_several(workdir, *command))
    with np.load(workdir / "samples.npz", allow_pickle=False) as file:
      drawn[count] = {name: file[name] for name in file}
  assert drawn[1]["arr_0"].shape == (13, 8, 8, 1)
  for name, wanted in drawn[1].items():
    np.testing.assert_array_equal(drawn[2][name], wanted)


@pytest.mark.slow
def test_an_evaluation_gives_the_same_figures(one, tmp_path):
  command = (
    "--mode", "evaluate", "--config.sample.batch_size=8", "--config.eval.num=40", "--config.eval.features=pixels",
  )  # fmt: skip
  rows = {}
  for count in (1, 2):
    workdir = tmp_path / str(count)
    shutil.copytree(one, workdir)
    texts = done([start(workdir, *command)] if count == 1 else start_several(workdir, *command))
    assert "draw 40/40" in texts[0] if count == 1 else "draw 24/24" in texts[0], "each draws its share"
    rows[count] = json.loads((workdir / "evaluation.json").read_text())
  assert rows[1] == rows[2]


@pytest.mark.slow
@pytest.mark.parametrize("hit", [(1,), (0,), (0, 1)])
def test_sigterm_to_any_ends_an_evaluation_in_all_and_it_goes_on(one, hit, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(one, workdir)
  command = (
    "--mode", "evaluate", "--config.sample.batch_size=8", "--config.eval.num=100000", "--config.eval.features=pixels",
    "--requeue_status", str(AGAIN),
  )  # fmt: skip
  processes = start_several(workdir, *command)
  wait_for(workdir, "evaluation/*/*.npz", processes)
  for i in hit:
    processes[i].send_signal(signal.SIGTERM)
  statuses, texts = finish(processes)
  assert statuses == [AGAIN, AGAIN], "\n".join(texts)
  assert "Stopped. The same command goes on." in texts[0] and "lost" not in "".join(texts)
  kept = {path: path.stat().st_mtime_ns for path in workdir.glob("evaluation/*/*.npz")}
  assert kept
  done(start_several(workdir, *command, "--config.eval.num=48"))
  assert all(path.stat().st_mtime_ns == when for path, when in kept.items()), "no batch is drawn twice"


@pytest.mark.slow
@pytest.mark.parametrize("hit", [0, 1])
def test_sigterm_to_one_ends_drawing_in_all(one, hit, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(one, workdir)
  command = ("--mode", "sample", "--config.sample.num=100000", "--config.sample.batch_size=8")
  processes = start_several(workdir, *command)
  assert any("sample " in line for line in processes[0].stderr), "it ended without drawing"
  processes[hit].send_signal(signal.SIGTERM)
  statuses, texts = finish(processes)
  assert statuses == [0, 0], "\n".join(texts)
  assert "lost" not in "".join(texts) and not (workdir / "samples.npz").exists()


@pytest.mark.slow
def test_a_mistake_of_the_users_ends_all_with_its_status(tmp_path):
  statuses, texts = finish(start_several(tmp_path, *TRAIN, "--config.parallel.strategy=pmap"))
  assert statuses == [2, 2]
  assert all(
    "config.parallel.strategy=pmap runs in one process, and this is one of 2" in text for text in texts
  )


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_told_by_all(tmp_path):
  first, second = tmp_path / "first", tmp_path / "second"
  statuses, texts = finish(start_several([first, second], *TRAIN))
  assert statuses == [2, 2], "\n".join(texts)
  for workdir, text in zip((first, second), texts, strict=True):
    assert f"process 1 of 2 does not see {str(workdir)!r} of process 0" in text and "--workdir" in text
  assert list(first.iterdir()) == [] and not second.exists()


@pytest.mark.slow
def test_a_second_run_in_the_workdir_is_refused_in_all_processes(tmp_path):
  with locks.hold(tmp_path):
    statuses, texts = finish(start_several(tmp_path, *TRAIN))
  assert statuses == [2, 2] and all("trains in" in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_stays_alone_says_where_it_waited(index, tmp_path):
  address = f"127.0.0.1:{free_port()}"
  joined = ("--coordinator", address, "--num_processes", "2", "--process_id", str(index))
  statuses, texts = finish([start(tmp_path, *TRAIN, "--connect_seconds", "3", joined=joined)])
  assert statuses == [HUNG]
  assert texts[0].startswith(
    f"jaxdiff: process {index} of 2 has not met the others at {address} (--coordinator)"
  )
  assert len(texts[0].splitlines()) == 1


@pytest.mark.slow
def test_slurms_variables_make_one_run(tmp_path):
  """As srun sets them, with a node that is this machine; the port is of the job's number."""
  job = free_port() % 4096
  slurm = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_JOB_ID": str(job)}
  processes = [
    start(
      tmp_path,
      *TRAIN,
      *LONG,
      "--config.train.steps=4",
      variables=slurm | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
    )
    for i in range(2)
  ]
  assert "2 process(es)" in done(processes)[0]


@pytest.mark.slow
def test_two_processes_undo_the_same_spikes_as_one(tmp_path):
  """So close to its median the loss of a small run spikes by itself, here three times."""
  spiky = ("--config.train.spike_factor=1.05", "--config.train.max_rollbacks=100", "--config.train.steps=30")
  one, two = tmp_path / "one", tmp_path / "two"
  done([start(one, *TRAIN, *LONG, *spiky, devices=2)])
  first, second = done(start_several(two, *TRAIN, *LONG, *spiky))
  assert first.count("Back to") >= 2 and "Back to" not in second
  assert (two / spikes.FILE).read_text() == (one / spikes.FILE).read_text()
  assert equal(last_state(two), last_state(one)) and losses(two) == losses(one)
