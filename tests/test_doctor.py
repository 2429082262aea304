"""--mode doctor: what it finds, what it advises, and when it says that training cannot work."""

import json
import subprocess
import sys

import pytest

from jaxdiff import doctor, main

TINY = doctor.Sizes(matmul=8, batch=1, side=4, channels=2, dtype="float32")
NOTHING = doctor.Seen()
GPU = doctor.Seen(gpus=("NVIDIA X",))
WITH_PLUGIN = GPU._replace(plugin="jax_cuda12_plugin")


@pytest.fixture
def machine(monkeypatch):
  """Makes the mode measure tiny sizes, and see these accelerators."""

  def has(seen=NOTHING, **environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "SIZES", dict.fromkeys(doctor.SIZES, TINY))
    monkeypatch.setattr(doctor, "accelerators", lambda environment: seen)

  return has


def run(capsys, *arguments):
  status = main.main(["--mode", "doctor", *arguments])
  return status, capsys.readouterr().err


def test_a_machine_that_can_train(machine, capsys, monkeypatch):
  machine()
  monkeypatch.setattr(doctor.platform, "huge_pages_setting", lambda: "madvise")
  status, text = run(capsys)
  assert status == 0 and text.rstrip().endswith("Training can work here.")
  names = [line.split()[1] for line in text.splitlines() if line[:3] in ("ok ", "see", "FIX")]
  wanted = [
    "Python",
    "packages",
    "JAX",
    "devices",
    "memory",
    "huge",
    "disk",
    "matmul",
    "convolution",
    "cuDNN",
    "digits",
  ]
  assert names[: len(wanted)] == wanted
  assert {"Fashion-MNIST", "TFDS", "torch", "onnxruntime"} <= set(names)
  assert "FIX" not in text


@pytest.mark.parametrize(
  ("setting", "tunables", "text", "is_advised"),
  [
    ("always", "", "for all programs", False),
    ("madvise", "glibc.malloc.hugetlb=1", "for programs that ask, as this one does", False),
    ("madvise", "", "for programs that ask, which takes glibc 2.35", False),
    ("never", "", "never, by the kernel's setting", True),
  ],
)
def test_huge_pages(setting, tunables, text, is_advised):
  (finding,) = doctor.huge_pages("cpu", setting, {"GLIBC_TUNABLES": tunables})
  assert finding.text == text and bool(finding.advice) == is_advised and not finding.stops
  assert doctor.huge_pages("gpu", setting, {}) == [] == doctor.huge_pages("cpu", "", {})


def test_a_gpu_that_jax_does_not_see(machine, capsys):
  machine(GPU, JAX_PLATFORMS="")
  status, text = run(capsys)
  assert status == 1
  assert "FIX  accelerator     this machine has an NVIDIA GPU (NVIDIA X), but JAX sees only the CPU" in text
  assert text.splitlines()[-1].startswith("jaxdiff: training cannot work here yet: accelerator: ")
  assert text.rstrip().endswith("pip install -r requirements.txt, which has JAX for CUDA; see docs/gpu.md")


def test_a_gpu_that_the_user_leaves_out(machine, capsys):
  machine(GPU, JAX_PLATFORMS="cpu")
  status, text = run(capsys)
  assert status == 0 and "-> JAX_PLATFORMS=cpu says so" in text


@pytest.mark.parametrize(
  ("seen", "environment", "advice"),
  [
    (GPU, {}, "requirements.txt"),
    (doctor.Seen(tpus=4), {}, "requirements-tpu.txt"),
    (WITH_PLUGIN, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides"),
    (WITH_PLUGIN, {"CUDA_VISIBLE_DEVICES": "0", "LD_LIBRARY_PATH": "/lib"}, "unset LD_LIBRARY_PATH"),
    (WITH_PLUGIN, {}, "newer driver"),
  ],
)
def test_why_an_accelerator_is_not_used(seen, environment, advice):
  (finding,) = doctor.unused(seen, "cpu", environment)
  assert finding.stops and advice in finding.advice
  assert doctor.unused(seen, "gpu", environment) == []
  assert doctor.unused(doctor.Seen(), "cpu", environment) == []


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


@pytest.mark.parametrize(
  ("line", "version", "is_old"),
  [
    (
      "NVRM version: NVIDIA UNIX x86_64 Kernel Module  510.39.01  Fri Dec 31 11:03:22 UTC 2021",
      "510.39.01",
      True,
    ),
    ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build", "570.86.15", False),
  ],
)
def test_gpus_as_their_driver_tells_them(tmp_path, line, version, is_old):
  write(tmp_path / "proc/driver/nvidia/version", f"{line}\nGCC version:  gcc version 12.3.0\n")
  for bus in ("0000:01:00.0", "0000:02:00.0"):
    write(tmp_path / f"proc/driver/nvidia/gpus/{bus}/information", "Model: \t\t NVIDIA X 9\nIRQ:   \t\t 12\n")
  seen = doctor.accelerators({}, tmp_path)
  assert seen.gpus == ("NVIDIA X 9", "NVIDIA X 9")
  assert seen.found[0].text == f"NVIDIA X 9, driver {version}"
  assert ("525.60 or newer" in seen.found[0].advice) == is_old


def test_gpus_whose_driver_is_not_there_or_is_that_of_windows(tmp_path):
  assert doctor.accelerators({}, tmp_path).gpus == ()
  write(tmp_path / "dev/nvidia0", "")
  assert "repair" in doctor.accelerators({}, tmp_path).found[0].advice
  write(tmp_path / "dev/dxg", "")
  write(tmp_path / "usr/lib/wsl/lib/nvidia-smi", "")
  assert doctor.accelerators({}, tmp_path).gpus == ("NVIDIA GPU of Windows",)


def test_a_backend_that_does_not_start(monkeypatch):
  def fail():
    raise RuntimeError("Unable to initialize backend 'tpu': in use\nmore")

  monkeypatch.setattr(doctor.jax, "devices", fail)
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  found = doctor.findings(TINY)
  assert found[-1].stops and found[-1].text == "JAX starts none: Unable to initialize backend 'tpu': in use"
  assert found[-1].advice == "JAX_PLATFORMS=tpu: unset it"


def test_tpu_chips_are_counted_by_their_ids(tmp_path):
  for i, (vendor, device) in enumerate(
    [("0x1ae0", "0x0063"), ("0x1AE0", "0x006f"), ("0x1ae0", "0x0042"), ("0x10de", "0x0063")]
  ):
    folder = tmp_path / f"0000:00:0{i}.0"
    folder.mkdir()
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "device").write_text(f"{device}\n")
  assert doctor._tpu_chips(tmp_path) == 2
  assert doctor._tpu_chips(tmp_path / "none") == 0


def test_python_and_packages(monkeypatch):
  assert doctor.python((3, 10)).stops
  assert not doctor.python((3, 11)).advice
  assert doctor.python((3, 14)).advice and not doctor.python((3, 14)).stops
  assert [f.text for f in doctor.packages()] == [
    f"{len(doctor.REQUIRED)} of {len(doctor.REQUIRED)} required ones"
  ]
  monkeypatch.setitem(doctor.REQUIRED, "orbits.checkpoint", "orbits-checkpoint")
  (finding,) = doctor.packages()
  assert finding.stops and finding.text == "orbits-checkpoint is missing"


@pytest.mark.parametrize(
  ("package", "error", "told"),
  [
    ("cv2", "ModuleNotFoundError(name='cv2')", "opencv-python-headless is missing"),
    (
      "cv2",
      "ImportError('libGL.so.1: cannot open')",
      "opencv-python-headless cannot be imported: libGL.so.1",
    ),
  ],
)
def test_a_package_that_the_library_cannot_do_without_is_told(package, error, told):
  program = f"""
import sys

class Without:
  def find_spec(self, name, path=None, target=None):
    if name == "{package}":
      raise {error}

sys.meta_path.insert(0, Without())
from jaxdiff import main
sys.exit(main.main(["--mode", "doctor"]))
"""
  result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
  assert result.returncode == 1, result.stderr
  assert f"FIX  packages        {told}" in result.stderr and "Traceback" not in result.stderr


def test_speed_is_work_by_time(monkeypatch):
  ticks = iter([0.0, 1.0, 3.0, 4.0, 4.5, 5.0, 9.0])  # end at 0 + 8; calls of 2, 0.5 and 4 seconds
  monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(ticks))
  assert doctor.rate(lambda x: x, (doctor.jnp.ones(1),), flops=10.0, seconds=8.0) == 20.0


def test_sets_that_lie_ready(tmp_path, monkeypatch):
  for path in ("mine/1.0.0", "resized/64x64/3.0.0", "half/1.0.0.incompleteABC"):
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "dataset_info.json").write_text(json.dumps({}))
  found = doctor.tfds_sets(tmp_path, {})
  assert found.text.startswith("mine, resized/64x64 in ") and not found.advice
  assert "TFDS_DATA_DIR" in doctor.tfds_sets(tmp_path / "none", {}).advice
  assert doctor.fashion_mnist(tmp_path).advice
  (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"")
  assert doctor.fashion_mnist(tmp_path).text == f"config.data.source=idx:{tmp_path}"


def test_no_cudnn_on_a_cpu_is_said_and_told():
  assert not doctor.cudnn_attention("cpu").advice
  finding = doctor.cudnn_attention("gpu")  # tried in earnest on this CPU, where it cannot work
  assert finding.text.startswith("does not work: ") and finding.advice


def test_other_arguments_are_refused(capsys):
  for argument in ("--workdir=x", "--config.train.steps=3"):
    status, text = run(capsys, argument)
    assert status == 2 and "takes no other arguments" in text
