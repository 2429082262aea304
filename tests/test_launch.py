"""launch/: the scripts are sound, what they name exists, and they do what they say, with stand-ins for what they start."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from jaxdiff import configuration, watchdog
from jaxdiff.main import main

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
JOBSETS = sorted(LAUNCH.glob("gke_jobset_*.yaml"))
FILES = [path for path in sorted(LAUNCH.iterdir()) if path.is_file()]
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: what the files here give as --requeue_status

ids = {"ids": lambda path: path.name}


def schema(name):
  return json.loads((ROOT / "tests" / "schemas" / f"{name}.json").read_text())


def container(path):
  """A JobSet's job and its only container."""
  job = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
  return job, job["template"]["spec"]["containers"][0]


# What they are


@pytest.mark.parametrize("path", SCRIPTS, **ids)
def test_scripts_are_sound(path):
  subprocess.run(["bash", "-n", path], check=True)
  places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
  shellcheck = shutil.which("shellcheck", path=places)
  assert shellcheck, "shellcheck is missing: pip install -r requirements-test.txt"
  found = subprocess.run([shellcheck, "--shell=bash", path], check=False, capture_output=True, text=True)
  assert found.returncode == 0, found.stdout
  assert os.access(path, os.X_OK) == (path.suffix == ".sh")


@pytest.mark.parametrize("path", JOBSETS, **ids)
def test_jobsets_fit_their_schema(path):
  text = yaml.safe_load(path.read_text())
  jsonschema.validate(text, schema("jobset"))
  job, only = container(path)
  assert job["completions"] == job["parallelism"]
  assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == only["name"]
  volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
  assert volumes == {mount["name"] for mount in only["volumeMounts"]}


def test_processes_of_a_gpu_jobset_find_the_first():
  """The name that JobSet gives the first pod of the first job: <set>-<job>-0-0.<set>."""
  path = LAUNCH / "gke_jobset_gpu.yaml"
  text, (job, only) = yaml.safe_load(path.read_text()), container(path)
  env = {variable["name"]: variable["value"] for variable in only["env"]}
  name = text["metadata"]["name"]
  host, _, port = env["JAX_COORDINATOR_ADDRESS"].partition(":")
  assert host == f"{name}-{text['spec']['replicatedJobs'][0]['name']}-0-0.{name}"
  assert {"containerPort": int(port)} in only["ports"]
  assert env["JAX_NUM_PROCESSES"] == str(job["completions"])


def test_the_sky_task_fits_its_schema():
  task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
  jsonschema.validate(task, schema("skypilot"))
  assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == {watchdog.STATUS, REQUEUE}
  for part in ("setup", "run"):
    subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
  assert {f"${name}" for name in ("CONFIG", "WORKDIR", "ARGUMENTS")} <= set(
    re.findall(r"\$[A-Z]+", task["run"])
  )


@pytest.mark.parametrize(
  ("name", "wrong"),
  [
    ("jobset", lambda text: text.replace("v1alpha2", "v1")),
    ("jobset", lambda text: text.replace("completions", "complettions")),
    ("jobset", lambda text: text.replace('"2"', "2")),
    ("jobset", lambda text: text.replace("backoffLimit: 0", "backoffLimit: 6")),
    ("skypilot", lambda text: text.replace("num_nodes: 1", "nodes: 1")),
    ("skypilot", lambda text: text.replace("recover_on_exit_codes", "recover_on")),
  ],
)  # fmt: skip
def test_schemas_see_slips(name, wrong):
  text = (LAUNCH / {"jobset": "gke_jobset_gpu.yaml", "skypilot": "skypilot.yaml"}[name]).read_text()
  assert wrong(text) != text
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(yaml.safe_load(wrong(text)), schema(name))


# What they name


@pytest.mark.parametrize("path", FILES, **ids)
def test_every_path_is_there(path):
  text = path.read_text()
  named = set(re.findall(r"\b(?:launch|configs|docs|tests|jaxdiff/\w+)/[\w./]+\w", text))
  named |= set(re.findall(r"\brequirements[\w-]*\.txt", text))
  assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", FILES, **ids)
def test_every_module_config_and_key_is_there(path):
  text = path.read_text()
  modules = re.findall(r'-m"?,? "?(jaxdiff[\w.]*)', text)
  assert all((ROOT / f"{name.replace('.', '/')}.py").exists() for name in modules)
  for spec in set(re.findall(r"configs/\w+\.py(?::\w+)?", text)):
    configuration.load(spec)
  known = configuration.flatten(configuration.load("configs/dit_cfg.py"))
  assert not [key for key in re.findall(r"--config\.([\w.]+)=", text) if key not in known]


@pytest.mark.parametrize("path", FILES, **ids)
def test_every_flag_is_one_of_the_command_line(path, capsys):
  with pytest.raises(SystemExit):
    main(["--help"])
  known = set(re.findall(r"--\w+", capsys.readouterr().out))
  ours = set()
  text = re.sub(r"\\\n\s*", " ", path.read_text())
  for line in text.splitlines():
    if "jaxdiff.main" in line and not line.startswith("#"):
      ours |= set(re.findall(r"(?<![\w-])--[a-z_]+", line.partition("jaxdiff.main")[2]))
  if path in JOBSETS:
    ours |= {argument.partition("=")[0].partition(".")[0] for argument in container(path)[1]["args"]}
  assert ours <= known


def test_the_statuses_are_those_of_the_program():
  """Each file takes 75 for `stopped, saved`, and starts again for it and for a step that hung."""
  for path in (
    LAUNCH / "local.sh",
    LAUNCH / "slurm.sbatch",
    LAUNCH / "tpu_pod.sh",
    LAUNCH / "skypilot.yaml",
    *JOBSETS,
  ):
    assert re.search(rf"--requeue_status[ =]{REQUEUE}\b", path.read_text()), path.name
  for path in (LAUNCH / "again.sh", LAUNCH / "slurm.sbatch", LAUNCH / "skypilot.yaml"):
    assert str(watchdog.STATUS) in path.read_text(), path.name


def test_xla_knows_the_flags():
  """XLA ends a process for a flag that it does not know."""
  flags = {flag for path in FILES for flag in re.findall(r"--xla_\w+=\w+", path.read_text())}
  assert flags
  env = os.environ | {"XLA_FLAGS": " ".join(sorted(flags)), "JAX_PLATFORMS": "cpu"}
  subprocess.run(
    [sys.executable, "-c", "import jax; jax.devices()"], env=env, check=True, capture_output=True
  )


def test_the_image_is_slim_pinned_and_not_roots():
  lines = [
    line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")
  ]
  orders = [line.split(maxsplit=1) for line in lines if not line.startswith(" ")]
  (base,) = [rest for word, rest in orders if word == "FROM"]
  assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
  assert [word for word, _ in orders].index("USER") > max(
    i for i, (word, _) in enumerate(orders) if word in ("RUN", "COPY")
  )
  assert not [rest for word, rest in orders if word == "USER" and rest in ("root", "0")]
  copied = [name for word, rest in orders if word == "COPY" for name in rest.split()[:-1]]
  assert copied and all((ROOT / name).exists() for name in copied)
  sent = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
  assert all(f"!{name}" in sent or name.startswith("requirements") for name in copied)
  assert all("==" in line.partition("#")[0] for name in copied if name.endswith(".txt")
             for line in (ROOT / name).read_text().splitlines() if line and line[0] not in "#-")  # fmt: skip


# What they do


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  """Makes a program of this name, first on the PATH, that runs a few lines of bash; in $LOG it may write what it is given."""
  folder = tmp_path / "bin"
  folder.mkdir()
  monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setenv("LOG", str(tmp_path / "log"))
  for name, value in (("PAUSE", "0"), ("GRACE", "3")):
    monkeypatch.setenv(name, value)

  def make(name, lines):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{lines}\n")
    path.chmod(0o755)
    return path

  return make


def run(*command, timeout=60, **env):
  command = [str(part) for part in command]
  return subprocess.run(
    command, check=False, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=timeout
  )


def logged():
  path = Path(os.environ["LOG"])
  return path.read_text().splitlines() if path.exists() else []


def wait_for(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)


@pytest.mark.parametrize(
  ("status", "runs"), [(0, 1), (2, 1), (1, 1), (130, 1), (74, 4), (75, 4), (137, 4), (134, 4)]
)  # fmt: skip
def test_again_starts_again_what_asks_for_it(stand_in, status, runs):
  command = stand_in("command", f'echo "$1" >> "$LOG"; exit {status}')
  result = run("launch/again.sh", command, "two words", RESTARTS="3")
  assert result.returncode == status
  assert logged() == ["two words"] * runs


def test_again_ends_when_a_later_start_does(stand_in):
  command = stand_in("command", 'echo >> "$LOG"; [ "$(wc -l < "$LOG")" -ge 3 ] || exit 74')
  assert run("launch/again.sh", command).returncode == 0
  assert len(logged()) == 3


SAVES = """trap 'sleep 0.3; echo saved "$me" >> "$LOG"; exit 75' TERM
echo started "$me" >> "$LOG"
while :; do sleep 0.05; done"""


def test_again_passes_sigterm_on_and_waits(stand_in):
  command = stand_in("command", SAVES)
  process = subprocess.Popen([LAUNCH / "again.sh", command], cwd=ROOT)
  wait_for(lambda: logged())
  process.terminate()
  assert process.wait(30) == REQUEUE
  assert [line.split()[0] for line in logged()] == ["started", "saved"]


def sigterm_before(tmp_path, script, command):
  """BASH_ENV for a script that gets SIGTERM just before it runs the command for the first time."""
  hook, sent = tmp_path / "hook", tmp_path / "sent"
  send = f"""[ "$BASH_COMMAND" != '{command}' ] || [ -e {sent} ] || {{ : > {sent}; kill -TERM $$; }}"""
  hook.write_text(f"case $0 in *{script}) trap {shlex.quote(send)} DEBUG ;; esac\n")
  return str(hook)


def test_again_passes_on_a_sigterm_of_the_moment_of_a_start(stand_in, tmp_path):
  command = stand_in("command", 'for ((i = 0; i < 200; i++)); do sleep 0.05; done; echo ended >> "$LOG"')
  result = run("launch/again.sh", command, BASH_ENV=sigterm_before(tmp_path, "again.sh", "child=$!"))
  assert result.returncode == 128 + signal.SIGTERM, result.stderr
  assert not logged()


def python_stand_in(stand_in, lines):
  """A Python that finds a free port, and in place of a run does these lines, as process $me."""
  own = f"""[ "$1" != -c ] || exec {sys.executable} "$@"
me=${{@: -1}}
{lines}"""
  return str(stand_in("python", own))


def test_local_starts_processes_that_find_each_other(stand_in):
  python = python_stand_in(stand_in, 'echo "$@" >> "$LOG"')
  result = run("launch/local.sh", 3, "--workdir", "a b", PYTHON=python)
  assert result.returncode == 0, result.stderr
  common = r"-m jaxdiff.main --requeue_status 75 --workdir a b --coordinator 127.0.0.1:(\d+) --num_processes 3 --process_id "
  found = [re.fullmatch(common + r"(\d)", line) for line in sorted(logged())]
  assert [match[2] for match in found] == ["0", "1", "2"]
  assert len({match[1] for match in found}) == 1


def test_local_gives_each_its_gpus(stand_in):
  python = python_stand_in(stand_in, 'echo "$me" "$CUDA_VISIBLE_DEVICES" "$XLA_FLAGS" >> "$LOG"')
  assert run("launch/local.sh", 2, PYTHON=python, GPUS_EACH="2", XLA_FLAGS="").returncode == 0
  flag = "--xla_gpu_enable_latency_hiding_scheduler=true"
  assert sorted(logged()) == [f"0 0,1 {flag}", f"1 2,3 {flag}"]


def test_local_passes_on_a_sigterm_of_the_moment_of_a_start(stand_in, tmp_path):
  python = python_stand_in(stand_in, 'for ((i = 0; i < 200; i++)); do sleep 0.05; done; echo ended >> "$LOG"')
  hook = sigterm_before(tmp_path, "local.sh", "running+=($!)")
  result = run("launch/local.sh", 2, PYTHON=python, BASH_ENV=hook, RESTARTS="0")
  assert result.returncode == 128 + signal.SIGTERM, result.stderr
  assert not logged()


def test_local_ends_all_when_one_fails(stand_in):
  """The second fails; the first saves; the third hears nothing and is killed."""
  python = python_stand_in(
    stand_in,
    f"[ $me != 1 ] || {{ sleep 0.5; exit 2; }}; [ $me = 0 ] || {{ trap '' TERM; while :; do sleep 0.05; done; }}\n{SAVES}",
  )
  begin = time.monotonic()
  result = run("launch/local.sh", 3, PYTHON=python, GRACE="5")
  assert result.returncode == 2
  assert "saved 0" in logged() and time.monotonic() - begin < 20


def test_local_starts_all_again_where_one_asks_for_it(stand_in):
  python = python_stand_in(
    stand_in, 'echo "$me" >> "$LOG"; [ "$me" = 0 ] || [ "$(grep -c 1 "$LOG")" -ge 2 ] || exit 74'
  )
  assert run("launch/local.sh", 2, PYTHON=python).returncode == 0
  assert sorted(logged()) == ["0", "0", "1", "1"]


def test_local_passes_sigterm_on_to_all(stand_in):
  python = python_stand_in(stand_in, SAVES)
  process = subprocess.Popen([LAUNCH / "local.sh", "2"], cwd=ROOT, env=os.environ | {"PYTHON": python})
  wait_for(lambda: len(logged()) == 2)
  process.send_signal(signal.SIGTERM)
  assert process.wait(30) == REQUEUE
  assert sorted(logged()[2:]) == ["saved 0", "saved 1"]


@pytest.mark.parametrize("count", ["", "0", "two"])
def test_local_tells_how_it_is_used(stand_in, count):
  result = run("launch/local.sh", count, PYTHON=python_stand_in(stand_in, "exit 1"))
  assert result.returncode == 2 and result.stderr.startswith("usage: launch/local.sh N") and not logged()


@pytest.mark.parametrize(
  ("status", "restarts", "requeued"),
  [(0, 0, False), (2, 0, False), (75, 99, True), (74, 9, True), (74, 10, False), (134, 0, True), (137, 10, False)],
)  # fmt: skip
def test_slurm_requeues_what_asks_for_it(stand_in, status, restarts, requeued):
  stand_in("srun", f'echo srun "$@" >> "$LOG"; exit {status}')
  stand_in("scontrol", 'echo scontrol "$@" >> "$LOG"')
  result = run(
    "bash", "launch/slurm.sbatch", "--config", "c.py", SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(restarts)
  )
  assert result.returncode == status
  first, *rest = logged()
  assert first.endswith("-m jaxdiff.main --workdir checkpoints/slurm_7 --requeue_status 75 --config c.py")
  assert rest == (["scontrol requeue 7"] if requeued else [])


GCLOUD = """verb=$4
echo "$@" >> "$LOG"
if [ -e "$STATE.fails.$verb" ]; then
  rm "$STATE.fails.$verb"
  [ "$verb" != scp ] || echo READY > "$STATE"
  echo "ERROR: (gcloud.$verb) no more capacity, or no answer" >&2
  exit 1
fi
case $verb in
  describe) cat "$STATE" 2>/dev/null || { echo "ERROR: NOT_FOUND: Resource 'pod' was not found" >&2; exit 1; } ;;
  create) echo READY > "$STATE" ;;
  delete) rm "$STATE" ;;
  scp) cp "$5" "$WORKER" ;;
  ssh) while [ "$1" != --command ]; do shift; done; cd "$WORKER" && bash -c "$2" ;;
esac"""


@pytest.fixture
def worker(stand_in, tmp_path, monkeypatch):
  """A home folder of a TPU's worker, with a jaxdiff whose runs do what the file `does` says."""
  stand_in("gcloud", GCLOUD)
  for name in ("python3", "sudo", "mountpoint"):
    stand_in(name, "exit 0")
  home = tmp_path / "worker"
  (home / "jaxdiff/.venv/bin").mkdir(parents=True)
  (home / ".local/bin").mkdir(parents=True)
  shutil.copytree(LAUNCH, home / "jaxdiff/launch")
  for path in ("jaxdiff/.venv/bin/python", ".local/bin/uv"):
    (home / path).write_text(
      '#!/usr/bin/env bash\n[ "${0##*/}" = uv ] || { printf "<%s>" "$@"; . "$HOME/does"; }\n'
    )
    (home / path).chmod(0o755)
  for name, value in (
    ("HOME", home),
    ("WORKER", home),
    ("STATE", tmp_path / "state"),
    ("SHARE", "10.0.0.2:/share"),
  ):
    monkeypatch.setenv(name, str(value))
  monkeypatch.setenv("NAME", "pod")
  return home


def test_a_tpu_pod_is_made_used_and_deleted(worker):
  (worker / "does").write_text("exit 0\n")
  for command in (("create",), ("run", "--config", "two words"), ("delete",)):
    result = run("launch/tpu_pod.sh", *command)
    assert result.returncode == 0, result.stderr
  wait_for(lambda: (worker / "jaxdiff/run.status").exists() and (worker / "jaxdiff/run.status").read_text())
  assert (worker / "jaxdiff/run.status").read_text() == "0\n"
  given = "<-m><jaxdiff.main><--workdir></shared/runs/pod><--requeue_status><75><--config><two words>"
  assert (worker / "jaxdiff/run.log").read_text() == given
  lines = logged()
  assert (
    lines[0].startswith("compute tpus tpu-vm create pod --accelerator-type v5litepod-16")
    and "--spot" in lines[0]
  )
  assert re.fullmatch(
    r"compute tpus tpu-vm scp \S+/jaxdiff.tar.gz pod: --worker=all --zone us-west4-a", lines[1]
  )
  assert lines[-1].startswith("compute tpus tpu-vm delete pod --quiet")


def test_a_tpu_pod_saves_to_a_bucket(worker):
  (worker / "does").write_text("exit 0\n")
  (worker / ".local/bin/uv").write_text('#!/usr/bin/env bash\necho "uv $*" >> "$HOME/uv"\n')
  for command in (("create",), ("run", "--config", "c.py")):
    result = run("launch/tpu_pod.sh", *command, SHARE="gs://bucket/runs")
    assert result.returncode == 0, result.stderr
  wait_for(lambda: (worker / "jaxdiff/run.status").exists() and (worker / "jaxdiff/run.status").read_text())
  given = "<--workdir><../runs/pod><--requeue_status><75><--config.train.checkpoint_dir=gs://bucket/runs/pod><--config><c.py>"
  assert (worker / "jaxdiff/run.log").read_text().endswith(given)
  assert "-r jaxdiff/requirements-gcs.txt" in (worker / "uv").read_text()
  assert not any("mount" in line for line in logged())


def test_a_tpu_pod_is_stopped_with_everything_saved(worker):
  (worker / "does").write_text("me=0\n" + SAVES)
  assert run("launch/tpu_pod.sh", "run").returncode == 0
  wait_for(lambda: "started 0" in logged())
  assert run("launch/tpu_pod.sh", "stop").returncode == 0
  wait_for(lambda: (worker / "jaxdiff/run.status").exists() and (worker / "jaxdiff/run.status").read_text())
  assert (worker / "jaxdiff/run.status").read_text() == f"{REQUEUE}\n" and "saved 0" in logged()


def test_a_preempted_tpu_pod_is_made_again(worker):
  """The first run ends with the slice; the second gets to its end."""
  (worker / "does").write_text(
    '[ -e "$HOME/once" ] || { touch "$HOME/once"; echo PREEMPTED > "$STATE"; exit 75; }\nexit 0\n'
  )
  result = run("launch/tpu_pod.sh", "keep", "--config", "c.py", PAUSE="1", RESTARTS="0")
  assert result.returncode == 0, result.stderr
  verbs = [line.split()[3] for line in logged()]
  assert verbs.count("create") == 2 and verbs.count("delete") == 1


@pytest.mark.parametrize(
  ("verb", "creates", "deletes"), [("describe", 1, 0), ("create", 2, 1), ("scp", 2, 1)]
)
def test_a_tpu_pod_is_tried_for_again(worker, tmp_path, verb, creates, deletes):
  """No answer, no capacity, half a slice: none ends `keep`, and it watches no slice on which nothing runs."""
  (worker / "does").write_text("exit 0\n")
  (tmp_path / f"state.fails.{verb}").touch()
  result = run("launch/tpu_pod.sh", "keep", "--config", "c.py", PAUSE="1", RESTARTS="0")
  assert result.returncode == 0 and "no answer" in result.stderr, result.stderr
  verbs = [line.split()[3] for line in logged()]
  assert verbs.count("create") == creates and verbs.count("delete") == deletes
  assert (worker / "jaxdiff/run.status").read_text() == "0\n"


def test_a_tpu_pod_tells_how_it_is_used(worker, monkeypatch):
  result = run("launch/tpu_pod.sh")
  assert result.returncode == 2 and "launch/tpu_pod.sh create" in result.stderr
  result = run("launch/tpu_pod.sh", "create", SHARE="")
  assert result.returncode == 2 and result.stderr.startswith("SHARE is not set") and not logged()
