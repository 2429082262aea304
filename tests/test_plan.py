"""--mode plan: what it tells is what a run takes, and to tell it nothing is made."""

import functools
import resource

import jax
import pytest

from jaxdiff import configuration, optim, parallel, plan, summary, tasks
from jaxdiff.main import main
from tests import small

SMALL = ("model.width=64", "model.depth=1", "plan.devices=4")  # wide enough that fsdp splits some leaves


def initial(config):
  """The state of a run on the devices here, as train.py makes it."""
  task = tasks.make(config, tasks.optimizer(config))
  strategy = parallel.make(config.parallel, config.train.batch_size)
  return strategy.init(functools.partial(tasks.initial_state, config, task))


def lowered(config):
  """The step of a run on the devices here."""
  state, step = plan.abstract(config)
  batch = tasks.abstract_batch(config, config.train.batch_size)
  return parallel.make(config.parallel, config.train.batch_size).lower(step, state, batch)


def flat(monkeypatch, each=1000, least=0):
  """What a step takes as a function of the images on a device, without a compiler."""
  monkeypatch.setattr(
    plan,
    "step_bytes",
    lambda step, state, batch, devices, fsdp: max(each * batch["label"].size / len(devices), least),
  )


def bytes_on_first_device(tree):
  data = [
    jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a
    for a in jax.tree.leaves(tree)
  ]
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in data)


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_a_state_takes_what_a_real_one_does_on_four_devices(fsdp):
  config = small.config("dit", *SMALL, f"parallel.fsdp={fsdp}")
  state, _ = plan.abstract(config)
  found = plan.state_bytes(state, parallel.shardings(config.parallel, 4, state))
  real = initial(config)
  average = bytes_on_first_device(optim.ema_params(real))
  assert found["params"] == bytes_on_first_device(real.params)
  assert found["EMA"] == average
  assert found["optimizer"] == bytes_on_first_device((real.opt_state, real.step, real.rng)) - average


BUDGET = 0.01  # GiB
PLANNED = (*SMALL, "parallel.fsdp=2", "train.microbatches=2", f"plan.memory_gib={BUDGET}")


@pytest.fixture(scope="module")
def planned():
  return plan.make(small.config("dit", *PLANNED))


def test_a_step_takes_what_the_compiled_one_of_a_run_does(planned):
  memory = lowered(small.config("dit", *PLANNED)).compile().memory_analysis()
  arguments = sum(size for name, size in planned.held.items() if name != "activations")
  assert memory.argument_size_in_bytes == pytest.approx(arguments, abs=64)
  beside = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  assert planned.held["activations"] == pytest.approx(beside, rel=1e-3)


def test_the_largest_batch_fits_and_no_much_larger_one(planned):
  config = small.config("dit", *PLANNED)
  unit = 4 * 2  # devices and microbatches
  assert planned.largest > 0 and planned.largest % unit == 0
  state, step = plan.abstract(config)
  held = sum(plan.state_bytes(state, parallel.shardings(config.parallel, 4, state)).values())

  def total(size):
    batch = tasks.abstract_batch(config, size)
    return held + plan.tree_bytes(batch) / 4 + plan.step_bytes(step, state, batch, jax.devices()[:4], fsdp=2)

  assert total(planned.largest) <= 1.02 * BUDGET * plan.GIB
  assert total(round(1.1 * planned.largest / unit) * unit) > BUDGET * plan.GIB


def test_a_plan_leaves_no_array(monkeypatch):
  before = {id(array) for array in jax.live_arrays()}
  flat(monkeypatch)
  plan.make(small.config("dit", *SMALL))
  assert not [array.shape for array in jax.live_arrays() if id(array) not in before and array.size > 1]


def test_fsdp_splits_the_state_and_pmap_does_not():
  held = {}
  for options in (("mesh", 1), ("mesh", 4), ("pmap", 4)):
    strategy, fsdp = options
    config = small.config("dit", *SMALL, f"parallel.strategy={strategy}", f"parallel.fsdp={fsdp}")
    state, _ = plan.abstract(config)
    held[options] = plan.state_bytes(state, parallel.shardings(config.parallel, 4, state))
  assert held["pmap", 4] == held["mesh", 1]
  assert all(held["mesh", 4][name] < 0.5 * size for name, size in held["mesh", 1].items())


def test_xl_2_has_its_published_size_and_none_of_it_is_made():
  config = configuration.load("configs/dit_cfg.py:imagenet256_latent_xl2")
  before, held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(jax.live_arrays())
  state, _ = plan.abstract(config)
  found = plan.state_bytes(state, parallel.shardings(config.parallel, 8, state))
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB; on macOS bytes
  assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 674_834_720
  assert found["params"] == found["EMA"] == 4 * 674_834_720
  assert found["optimizer"] == pytest.approx(2 * found["params"], abs=100)
  assert grown < 2**20 and len(jax.live_arrays()) == held


def test_flops_are_those_that_a_run_tells_and_loops_do_not_hide_any():
  config = small.config("dit")
  flops = plan.step_flops(config)
  placed = lowered(config).cost_analysis()["flops"]  # on several devices, which pass on a few numbers more
  assert flops == pytest.approx(placed, rel=1e-4)
  told = summary.describe(config, plan.abstract(config)[0].params, flops, 1)
  assert f"{flops / 1e9:,.1f} GFLOP" in told
  looped = plan.step_flops(small.config("dit", "train.microbatches=2", "model.scan=true"))
  assert looped == flops
  assert plan.step_flops(small.config("dit", "train.batch_size=16")) == pytest.approx(2 * flops, rel=0.05)


@pytest.mark.parametrize(("least", "most"), [(0, 2), (50, 3), (300, 4), (900, 5)])
def test_a_flat_start_does_not_hide_the_slope_that_the_largest_batch_meets(least, most):
  """What a step takes is a maximum: of the optimizer's moment, and of the backward pass's, which grows with the batch."""
  measured = []

  def measure(examples):
    measured.append(examples)
    return max(10 * examples, least)

  line = plan.grown(measure, 4, 1000, 1)
  assert 90 <= line.end(1000) <= 110
  assert len(measured) == len(set(measured)) <= most


def test_nothing_fits_into_no_room():
  assert plan.grown(lambda n: 5 + 10 * n, 4, -1, 1).end(-1) < 1


def run(*overrides, capsys, name="dit"):
  tiny = [f"--{line}" for line in small.arguments(name)]
  status = main(
    ["--mode", "plan", "--config", f"configs/{name}_cfg.py", *tiny, *(f"--config.{o}" for o in overrides)]
  )
  return status, capsys.readouterr().err


def test_the_table_names_what_takes_most(capsys, monkeypatch):
  flat(monkeypatch, least=10**7)
  status, text = run(
    "plan.devices=2", "parallel.fsdp=2", "model.dtype=bfloat16", "model.attention=cudnn", capsys=capsys
  )
  assert status == 0
  rows = {line.split()[0]: line for line in text.splitlines()}
  for name in ("params", "optimizer", "EMA", "batch", "activations"):
    assert rows[name][14:26].strip().replace(".", "").isdigit()
  assert (
    "2 share a state (config.parallel.fsdp)" in rows["plan"]
    and "of 80 (config.plan.memory_gib)" in rows["total"]
  )
  assert "It fits. The largest part, " in text and "is activations: config.train.microbatches" in text
  assert "at 4 images a device" in text and "bfloat16 in float32" in text and "without cuDNN's" in text


def test_what_is_computed_again_is_not_kept():
  """On a CPU only in a loop, which the plan therefore makes of the blocks."""
  config = small.config("dit", "model.depth=6", "plan.devices=1", "train.batch_size=64", "model.remat=full")
  compiled, remarks = plan._compilable(config, jax.devices()[:1])
  assert compiled.model.scan and not config.model.scan and "config.model.remat only in a loop" in remarks[0]
  taken = {}
  for remat in ("none", "full"):
    compiled.model.remat = remat
    state, step = plan.abstract(compiled)
    taken[remat] = plan.step_bytes(step, state, tasks.abstract_batch(compiled, 64), jax.devices()[:1], 1)
  assert taken["full"] < 0.5 * taken["none"]
  unet = small.config("unet", "model.remat=full")
  assert "does not keep to config.model.remat" in plan._compilable(unet, jax.devices()[:1])[1][0]


@pytest.mark.parametrize(
  ("attention", "dtype", "is_told"),
  [
    ("auto", "bfloat16", True),
    ("cudnn", "bfloat16", True),
    ("auto", "float32", False),
    ("xla", "bfloat16", False),
  ],
)
def test_the_cpu_is_not_asked_for_cudnns_attention(attention, dtype, is_told):
  """Not by auto either, which would where the machine has a GPU, only not as many as are planned for."""
  config = small.config("dit", f"model.attention={attention}", f"model.dtype={dtype}")
  compiled, remarks = plan._compilable(config, jax.devices()[:1])
  assert compiled.model.attention == "xla" and config.model.attention == attention
  assert any("without cuDNN's" in remark for remark in remarks) == is_told


def test_what_does_not_fit_is_told(capsys, monkeypatch):
  flat(monkeypatch)
  status, text = run("plan.devices=1", "plan.memory_gib=0.0001", capsys=capsys)
  assert status == 0
  assert "largest batch none: not one image a device fits" in text and "It does not fit." in text


def test_a_branch_holds_its_base(tmp_path, capsys, monkeypatch):
  """As a run of it, it takes over the base's network; the base's parameters are in its state."""
  flat(monkeypatch)
  base = small.config("dit", "model.depth=4")
  (tmp_path / "config.json").write_text(configuration.to_json(base))
  status = main(
    ["--mode", "plan", "--config", "configs/controlnet_cfg.py", f"--config.base.workdir={tmp_path}", "--config.plan.devices=1"]
  )  # fmt: skip
  text = capsys.readouterr().err
  assert status == 0, text
  params = plan.tree_bytes(plan.abstract(base)[0].params)
  frozen = next(line for line in text.splitlines() if line.startswith("frozen"))
  assert float(frozen.split()[1]) == pytest.approx(params / plan.GIB, abs=6e-4)
  assert "the base of a branch" in frozen


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (("plan.devices=0",), "config.plan.devices is 0; it must be at least 1."),
    (("plan.memory_gib=0",), "config.plan.memory_gib is 0; it must be above 0, as 80."),
    (
      ("plan.devices=3",),
      "batch size 8 (config.train.batch_size) is not divisible by 3 devices. Use 9.",
    ),
    (
      ("plan.devices=8", "parallel.fsdp=3"),
      "8 devices cannot be split into groups of 3 (config.parallel.fsdp).",
    ),
    (
      ("plan.devices=8", "train.microbatches=3"),
      "batch size 8 (config.train.batch_size) is not divisible by 3 microbatches (config.train.microbatches) on 8 devices. Use 24.",
    ),
    (("plan.devices=8", "parallel.strategy=mash"), "unknown parallel strategy 'mash'. Did you mean 'mesh'? Known: mesh, pmap."),
    (("plan.devices=8", "parallel.fsdp=8"), "to compile for 8 devices that share a state (config.parallel.fsdp)"),
    (("train.batch_size=0",), "config.train.batch_size is 0; it must be at least 1."),
  ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(overrides, message, capsys):
  status, text = run(*overrides, capsys=capsys)
  assert status == 2 and "Traceback" not in text
  assert [line for line in text.splitlines() if line.startswith(f"jaxdiff: {message}")], text
