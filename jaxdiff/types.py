"""The contracts that every layer shares: states, conditions, predictions, and the shapes of functions.

Reading this file first makes the rest of the library readable in any order.

Symbols: x is a clean image, eps ~ N(0, I), z_t = alpha_t x + sigma_t eps its noised version at time t,
t in [0, 1] with t = 0 clean. Images are NHWC float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]  # "image" u8[B,H,W,C] (or f32 latents), "label" i32[B], "index" u32[B]
Metrics = dict[str, Array]  # name -> f32[]

NULL_LABEL = -1  # the label of "no label": what conditioning dropout writes, and what every model accepts


class Cond(flax.struct.PyTreeNode):
  """What an image is conditioned on.

  Shapes: label: i32[B] in [0, num_classes), or NULL_LABEL; hint: f32[B,H,W,Ch] in [0, 1] or None; hint_scale: f32[B,n], the
  strength of each of a control branch's n residuals, or None for 1.  Where several branches act, hint and hint_scale are
  tuples with an array for each.  guidance: f32[B], for students that take the scale of classifier-free guidance as an input,
  or None for 1.
  """

  label: Array
  hint: Any = None
  hint_scale: Any = None
  guidance: Array | None = None


class Prediction(NamedTuple):
  """What a network's output means: the clean image and the noise it believes in.

  Shapes: x, eps: f32[B,H,W,C]; they satisfy z_t = alpha_t x + sigma_t eps unless a wrapper says otherwise.
  log_var: f32[B,H,W,C] or None, where a learned log-variance of p(z_s | z_t) lies between its bounds: 0 is log beta-tilde,
  1 is log sigma_ts^2. (The bounds depend on the step, which the sampler knows; see first_order.learned.)
  """

  x: Array
  eps: Array
  log_var: Array | None = None


Denoiser = Callable[[Array, Array, Cond], Prediction]  # (z f32[B,H,W,C], t f32[B], cond)


class NoiseSchedule(NamedTuple):
  """q(z_t | x) = N(alpha_t x, sigma_t^2 I) for t in [0, 1].

  The functions are element-wise; they work on NumPy float64 (grids, at trace time) and on JAX arrays.
  """

  alpha: Callable[[Any], Any]
  sigma: Callable[[Any], Any]
  model_time: Callable[[Any], Any]  # t -> what the network is told (for DDPM's tables: the step index)

  def log_snr(self, t: Any) -> Any:
    """log(alpha_t^2 / sigma_t^2), decreasing in t; +inf at t = 0 where sigma_t = 0."""
    xp = jnp if isinstance(t, jax.Array) else np
    return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))


class Parameterization(NamedTuple):
  """What the network regresses on, and how its output is read."""

  target: Callable[[Array, Array, Array, Array], Array]  # (x, eps, alpha, sigma) -> regression target
  decode: Callable[[Array, Array, Array, Array], Prediction]  # (out, z, alpha, sigma) -> Prediction
  error_scale: Callable[[Array, Array], Array]  # (alpha, sigma) -> k in |target error|^2 = k |x error|^2
  encode: Callable[[Array, Array, Array], Array]  # (z, alpha, sigma) -> what the network sees
  outputs: int = 1  # images that the network puts out, concatenated along the channels
  # (images f32[B,H,W,outputs C], z, alpha, sigma) -> the one output f32[B,H,W,C] that target and decode speak of
  combine: Callable[[Array, Array, Array, Array], Array] = lambda images, z, alpha, sigma: images


class Sampler(NamedTuple):
  """A solver of the reverse process. Its coefficients are data: one compiled loop serves all of them."""

  init: Callable[[Array], PyTree]  # z -> carry
  step: Callable[..., tuple[Array, PyTree]]
  # (key, z, carry, t, s, cond, denoise, schedule) -> (z_s, carry), for any pair s < t


class TrainState(flax.struct.PyTreeNode):
  """All that a run is. The EMA of the parameters lives in opt_state (see optim.params_ema)."""

  step: Array  # i32[], number of train steps taken
  params: PyTree  # f32
  opt_state: optax.OptState
  rng: Array  # the run's key; never advanced: step keys are fold_in(rng, step)


class ControlNetState(TrainState):
  """The state of a control branch: params are the branch's, base_params those of the network it steers."""

  base_params: PyTree  # f32, frozen: never differentiated, in no optimizer and no EMA


class DistillState(TrainState):
  """The state of a student: params are the student's, teacher_params those of the model that it learns from."""

  teacher_params: PyTree  # f32, frozen until the round ends
  num_steps: Array  # i32[], in which the student samples; traced, so that halving compiles nothing


class ClassifierState(TrainState):
  """The state of a classifier of noised images: a train state whose params map (z_t, t) to logits."""


class Task(NamedTuple):
  """What is learned. The loop, the step and the strategies know no more of a task than this."""

  init: Callable[[Array, Batch], Any]  # (key, batch) -> its TrainState variant
  loss: Callable[[PyTree, Any, Batch, Array], tuple[Array, Metrics]]  # (params, state, batch, key)
  denoiser: Callable[[PyTree, Any], Denoiser] | None  # (params, state) -> Denoiser, for sampling and scoring
  advance: Callable[[Any], Any]  # state -> state at the end of a stage
  stages: Collection[int] = ()  # the steps after which the state is advanced
  # (fresh state, a trained run's parameters) -> the state that starts from them; None: a task that starts from nothing
  adopt: Callable[[Any, PyTree], Any] | None = None
