"""What every config has, with its defaults. An experiment's file starts from here and sets what it differs in."""

from collections.abc import Callable

from ml_collections import ConfigDict

from jaxdiff.errors import unknown


def get_config() -> ConfigDict:
  """The sections that all tasks share. `model` is the experiment's own."""
  c = ConfigDict()
  c.name = "base"  # results lie in checkpoints/<name> unless --workdir says otherwise
  c.seed = 0  # everything random is a function of (seed, step, example index)
  c.task = "denoise"  # what is learned: see jaxdiff/tasks

  c.data = ConfigDict()  # the examples, and how they become batches
  c.data.source = "digits"  # digits | shapes[:<size>] | idx:<dir> | folder:<dir> | tfds:<name or dir>
  c.data.split = "train"  # of the source, to train on; or a share of one, as train[:90%]
  # the split that a classifier is tested on, and that a branch's hints come from; empty: the training data
  c.data.heldout = ""
  c.data.image_size = 8  # pixels, the side of the square the model sees
  c.data.channels = 1  # 1 gray, 3 RGB
  c.data.resize = "auto"  # auto: shorter side to image_size, then crop | pad: zeros around smaller images
  c.data.random_crop = False  # False crops the centre
  c.data.random_flip = False  # True mirrors half of the examples left to right
  # what a control branch is steered by, made of each image: canny(low=50.0,high=150.0) | hough(detector=hough) | scribble
  # | segmentation(colours=6) | depth(near=bright); empty: no hints. See docs/hints.md
  c.data.hint = ""
  # read hints from this folder instead: for <class>/a.jpg of a folder source, <class>/a.png
  c.data.hint_maps = ""
  c.data.in_memory = True  # keep decoded images in RAM (small sets)
  c.data.skip_unreadable = False  # True drops files that cannot be decoded, with a warning
  c.data.workers = 0  # decoding processes; 0 decodes in threads of this process
  c.data.threads = 4  # decoding threads
  c.data.prefetch = 16  # batches made ahead

  c.diffusion = ConfigDict()  # the process, and what the network learns of it: see docs/math.md
  # how signal and noise change with time: linear | scaled_linear | cosine_discrete | cosine | sigmoid | rectified_flow
  # | edm
  c.diffusion.schedule = "cosine"
  c.diffusion.shift = 1.0  # factor on sigma / alpha at every t; above 1 for larger images (side / 64)
  c.diffusion.zero_terminal_snr = False  # bring the schedule's end to pure noise
  # what the network predicts: eps | x | x_and_eps | v | velocity | edm(sigma_data=0.5)
  c.diffusion.parameterization = "v"
  # of the loss by noise level: uniform_eps | uniform_x | uniform_v | truncated_snr | min_snr(gamma=5) | p2
  # | edm(sigma_data=0.5) | sigmoid | vlb
  c.diffusion.weighting = "uniform_v"
  # how the times of a batch are drawn: uniform | uniform_discrete | low_discrepancy | logit_normal(mean=0.0,std=1.0)
  # | edm_log_normal(mean=-1.2,std=1.2) | clean (classifiers)
  c.diffusion.time_density = "uniform"
  # of the variational bound in the loss, which teaches a learned variance (config.model.learn_sigma)
  c.diffusion.vlb_weight = 0.001
  c.diffusion.label_dropout = 0.1  # share of examples trained without label, for classifier-free guidance

  c.optim = ConfigDict()  # AdamW, and the average of the parameters
  c.optim.learning_rate = 1e-4  # its peak
  c.optim.warmup_steps = 0  # updates in which the rate rises to its peak
  # of the rate after that: constant | cosine | linear (to 0 at the end of the run, or of a round of distillation)
  c.optim.decay = "constant"
  c.optim.beta1 = 0.9  # share of the gradients' mean that an update keeps
  c.optim.beta2 = 0.999  # share of their squares' mean that it keeps
  c.optim.epsilon = 1e-8  # added to the root of that, by which the update is divided
  c.optim.weight_decay = 0.0  # times the rate, each update; matrices and kernels only
  c.optim.clip_norm = 1.0  # largest norm of all gradients together; 0 does not clip
  # steps whose gradients are not finite, or longer than this norm (0: any length), change nothing
  c.optim.skip_norm = 0.0
  c.optim.max_bad_steps = 3  # such steps in a row that a run bears; more end it
  # train steps an update: gradients are averaged (within a step: train.microbatches)
  c.optim.accumulate_steps = 1
  c.optim.ema_decay = 0.9999  # share of the averaged parameters that an update keeps
  c.optim.ema_start_step = 0  # updates before the average starts; until then it is a copy

  c.train = ConfigDict()  # the run
  c.train.steps = 100_000  # of the whole run
  c.train.batch_size = 128  # images a step, over all devices
  # parts of a device's share of a batch, one after the other: less memory, the same gradients
  c.train.microbatches = 1
  c.train.log_every = 50  # steps between lines of metrics.jsonl
  c.train.sample_every = 1000  # steps between pictures; 0 draws only at the end
  c.train.checkpoint_every = 1000  # steps between checkpoints
  c.train.checkpoint_dir = ""  # where they lie, a folder or gs://bucket/folder; empty: in the workdir
  c.train.keep_checkpoints = 2  # the newest ones that stay
  c.train.keep_every = 0  # steps; checkpoints divisible by it stay for ever; 0: none
  # a loss so many times its median in the last 10 logs: back to a checkpoint before, and on past those batches; 0: never
  c.train.spike_factor = 0.0
  c.train.max_rollbacks = 3  # how often a run may go back like that; the next spike ends it
  # a step that takes so many times the run's median, and at least stall_seconds, has hung: exit status 74; 0: never
  c.train.stall_factor = 20.0
  c.train.stall_seconds = 600.0  # seconds that a step may take in any case

  c.profile = ConfigDict()  # a trace for TensorBoard or Perfetto: see docs/PERFORMANCE.md
  c.profile.steps = 0  # train steps that are recorded; 0: none
  c.profile.after = 10  # steps that are taken before, to warm up
  c.profile.folder = ""  # where the trace lies; empty: profile/ in the workdir

  c.parallel = ConfigDict()  # how a step runs on many devices
  # mesh: one program over all devices | pmap: one a device, with a copy of the state each
  c.parallel.strategy = "mesh"
  c.parallel.fsdp = 1  # devices that share one copy of the state (mesh only)

  c.plan = ConfigDict()  # --mode plan tells what a run takes on devices that are not here
  c.plan.devices = 8  # how many
  c.plan.memory_gib = 80.0  # GiB that a run may take of each

  c.sample = ConfigDict()  # how images are drawn, by --mode sample and while training: see docs/samplers.md
  c.sample.num = 100  # images
  c.sample.folder = ""  # where --mode sample leaves them; empty: in the workdir
  c.sample.labels = ()  # repeated in this order; empty: all classes in turn
  c.sample.guidance = 1.5  # 0: no label; 1: the label, no guidance; above: closer to the label, less varied
  # where it is on: between these noise levels sigma/alpha, as 0.2,5.0
  c.sample.guidance_interval = (0.0, float("inf"))
  c.sample.guidance_rescale = 0.0  # 0..1: back to the contrast of an unguided image
  # steers by it: the workdir of a classifier, or module:function, (z, t, label) -> log p
  c.sample.classifier = ""
  c.sample.classifier_scale = 1.0  # 0: off; 1: the classifier's gradient as it is; above: closer to the label
  # z: noised images | x: the predicted clean ones | auto: what it was trained on
  c.sample.classifier_sees = "auto"
  # how noise becomes an image: ddpm(variance=fixed_small) | ddim(eta=0.0) | euler | euler_ancestral(eta=1.0) | heun
  # | dpmpp_1 | dpmpp_2m | dpmpp_3m | dpmpp_sde_2m | unipc
  c.sample.sampler = "ddim"
  c.sample.steps = 50  # of the sampler, from noise to image
  # a student's: it samples in so many steps of ddim on the uniform grid; 0: any number
  c.sample.only_steps = 0
  # the times that the steps go between: uniform | quadratic | leading | trailing | linspace | karras(rho=7.0) | log_snr
  c.sample.grid = "uniform"
  c.sample.threshold = "clip"  # the predicted image's range: clip | dynamic(percentile=0.995) | none
  c.sample.image = ""  # a file: start from this image instead of from noise
  c.sample.strength = 1.0  # share of the steps that it goes through: the less, the more of the image stays
  c.sample.mask = ""  # a file: paint only where it is white, the rest stays as in the image
  c.sample.repeats = 1  # times each step is taken when painting: more fit the new part to the old one better
  # control branches: data[:SPLIT] | an image, or a folder of them, whose hint is made (or a ready one: hint_is_map); one for
  # each branch, with commas between
  c.sample.hint = ""
  c.sample.hint_is_map = False  # True: the files of config.sample.hint are hints already
  c.sample.control_scale = (1.0,)  # strength of each branch; 0: the base alone
  # 1: hints are obeyed as learned; above: images are drawn away from what the base draws without them, at half as much cost again
  c.sample.hint_guidance = 1.0
  c.sample.branches = ""  # workdirs of further control branches of the same base, with commas between
  # weaker control of the first layers, and at hint_guidance=1 no hint without a label: for hints without labels
  c.sample.guess = False
  c.sample.batch_size = 100  # images drawn at a time
  c.sample.seed = 0  # of the noise: image i is a function of (seed, i)
  c.sample.ema = True  # False draws with the raw parameters

  c.eval = ConfigDict()  # --mode evaluate scores images, drawn as config.sample says: see docs/evaluation.md
  c.eval.num = 10_000  # images drawn
  # as config.sample.labels, all classes in turn by default | data: as often as in the data
  c.eval.labels = "balanced"
  # inception[:FILE] | classifier:WORKDIR (of a run of configs/classifier_cfg.py) | onnx:FILE[?SCALING] | pixels (tests)
  c.eval.features = "inception"
  # scored instead of drawing: FILE.npz (arr_0, labels in arr_1) | a folder of images | data:SPLIT, as data:test
  c.eval.images = ""
  c.eval.reference = ""  # FILE.npz of statistics to compare with; empty: made of config.data.source
  c.eval.reference_split = ""  # of config.data.source; empty: config.data.split, what was trained on
  c.eval.make_reference = ""  # write these statistics to this FILE.npz and stop
  c.eval.classifier = ""  # workdir of a classifier that tells classes; empty: that of features, if it is one
  # one evaluation for each of these values of config.sample.guidance, as 1,1.5,2,3
  c.eval.sweep_guidance = ""
  c.eval.sweep_classifier_scale = ""  # the same of config.sample.classifier_scale
  c.eval.sweep_steps = ""  # the same of config.sample.steps, as 5,10,20,50
  c.eval.every = 0  # steps between quick evaluations while training; 0: none
  c.eval.quick_num = 1000  # images of a quick evaluation

  # --mode export writes what of a run draws images: config.json and model.safetensors
  c.export = ConfigDict()
  c.export.out = ""  # the folder
  c.export.dtype = "float16"  # of the file's numbers: float16 | bfloat16 | float32

  c.prepare = ConfigDict()  # --mode prepare turns config.data.source into a TFDS ArrayRecord set
  c.prepare.out = "~/tensorflow_datasets"  # folder of TFDS sets
  c.prepare.name = "my_set"  # the set's name there: a-z, 0-9 and _
  return c


def short_run(c: ConfigDict) -> None:
  """Hyperparameters of a small network that has minutes, not days: a high rate that falls to 0, a short average."""
  c.optim.learning_rate = 1e-3
  c.optim.warmup_steps = 50
  c.optim.decay = "cosine"
  c.optim.ema_decay = 0.995
  c.optim.ema_start_step = 100
  c.train.batch_size = 64
  c.train.sample_every = 500
  c.train.checkpoint_every = 500


def fashion_mnist(c: ConfigDict) -> None:
  """60,000 garments, 28x28 gray, padded to 32x32.  Debian and Ubuntu: apt-get install dataset-fashion-mnist."""
  c.data.source = "idx:/usr/share/datasets/fashion-mnist"
  c.data.image_size = 32
  c.data.resize = "pad"


def shapes(c: ConfigDict) -> None:
  """50,000 drawn scenes with exact label and depth maps, 32x32 RGB: no files, no downloads."""
  c.data.source = "shapes"
  c.data.image_size = 32
  c.data.channels = 3
  c.data.random_flip = True
  c.model.num_classes = 6


def cifar10(c: ConfigDict) -> None:
  """50,000 photographs, 32x32 RGB."""
  c.data.source = "tfds:cifar10"
  c.data.image_size = 32
  c.data.channels = 3
  c.data.random_flip = True


def imagenet64(c: ConfigDict) -> None:
  """1.28 million photographs of 1000 classes, 64x64 RGB."""
  c.data.source = "tfds:imagenet_resized/64x64"
  c.data.image_size = 64
  c.data.channels = 3
  c.data.random_flip = True
  c.data.in_memory = False
  c.data.workers = 8
  c.model.num_classes = 1000
  c.train.batch_size = 256
  c.train.sample_every = 10_000
  c.train.checkpoint_every = 5000
  c.train.keep_every = 50_000


def choose(presets: dict[str, Callable[[ConfigDict], None]], preset: str) -> Callable[[ConfigDict], None]:
  """The function of a preset; without a name, `digits`.  Raises UserError for an unknown one."""
  name = preset or "digits"
  if name not in presets:
    raise unknown("preset", name, presets)
  return presets[name]
