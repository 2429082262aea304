"""The task of a control branch: a frozen denoiser learns to obey a hint by what a trainable branch adds to it.

A branch's parameters are {"control": those of models.controlnet} and, with config.control.unlock_decoder,
{"unlocked": the base's decoder}, which then is trained too.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdiff import models
from jaxdiff.data import hints, pixels
from jaxdiff.data.hints import Hint
from jaxdiff.diffusion import losses
from jaxdiff.errors import UserError
from jaxdiff.models import controlnet
from jaxdiff.tasks import denoise
from jaxdiff.types import Array, Batch, Cond, ControlNetState, PyTree, Task


def make(config: Any, tx: optax.GradientTransformation) -> Task:
  """The task of config.control on the base that config.model describes, trained by tx.

  Raises UserError for settings that cannot be.
  """
  parse_hint(config.data.hint)
  base, branch = denoise.build_network(config), build_branch(config)
  control = config.control

  def init(key: Array, batch: Batch) -> ControlNetState:
    base_key, branch_key, run_key = jax.random.split(key, 3)
    inputs = denoise.example(batch)
    base_params = base.init(base_key, *inputs)["params"]
    own = branch.init(branch_key, *inputs)["params"]
    state = ControlNetState(jnp.zeros((), jnp.int32), {"control": own}, None, run_key, base_params)
    return adopt(state, base_params)

  def adopt(state: ControlNetState, base_params: PyTree) -> ControlNetState:
    """The state of a fresh branch on a trained base: copies of its first half, and zeros between the two."""
    # Copies: what is donated must not share a buffer with what is frozen.
    params = {"control": controlnet.copied(state.params["control"], base_params)}
    if control.unlock_decoder:
      params["unlocked"] = {name: base_params[name] for name in controlnet.DECODER}
    params = jax.tree.map(jnp.copy, params)
    return state.replace(params=params, opt_state=tx.init(params), base_params=base_params)

  def apply(params: PyTree, state: ControlNetState, z: Array, t: Array, cond: Cond, **training: Any) -> Array:
    whole = state.base_params | params.get("unlocked", {})
    residuals = controls(branch, params["control"], z, t, cond, **training)
    return base.apply({"params": whole}, z, t, cond, residuals=residuals)

  def condition(batch: Batch, key: Array) -> Cond:
    label_key, hint_key = jax.random.split(key)
    label = denoise.drop_labels(batch["label"], control.label_dropout, label_key, batch["index"])
    return Cond(
      label, drop_hints(pixels.to_unit(batch["hint"]), control.hint_dropout, hint_key, batch["index"])
    )

  task = denoise.from_network(config, init, denoise.Network(apply, condition))

  def loss(params: PyTree, state: ControlNetState, batch: Batch, key: Array) -> Any:
    value, metrics = task.loss(params, state, batch, key)
    norms = controlnet.zero_norms(params["control"])
    return value, metrics | {f"zero/{name}": norm for name, norm in norms.items()}

  return task._replace(loss=loss, adopt=adopt)


def parse_hint(spec: str, *, train: bool = True) -> Hint:
  """The hint that a branch is to obey.  Raises UserError for none, and as hints.parse."""
  hint = hints.parse(spec, train=train)
  if hint is None:
    raise UserError(
      f"a control branch needs a hint, config.data.hint is empty. Use one of {', '.join(hints.HINTS)}."
    )
  return hint


def build_branch(config: Any) -> nn.Module:
  """The network of config.control: the base's settings, for a DiT with config.control.blocks blocks.

  Raises UserError for a number of blocks that the base does not have, and for a DiT's decoder, which is none.
  """
  settings = dict(config.model.items())
  if settings["name"] == "dit":
    if not 1 <= config.control.blocks <= settings["depth"]:
      raise UserError(
        f"config.control.blocks is {config.control.blocks}; the base has {settings['depth']} blocks to copy. "
        f"Use 1 to {settings['depth']}, as {max(1, settings['depth'] // 2)}."
      )
    if config.control.unlock_decoder:
      raise UserError("config.control.unlock_decoder=True is for a UNet; a DiT has no decoder. Leave it out.")
    settings["depth"] = config.control.blocks
  return models.build(settings, models.CONTROLS)


def controls(branch: nn.Module, params: PyTree, z: Array, t: Array, cond: Cond, **training: Any) -> PyTree:
  """What branches add to a base's residuals: sum over branches of hint_scale times what each says of its hint.

  params, cond.hint and cond.hint_scale are one branch's or, for several, tuples; training: train and rngs.
  """
  if not isinstance(params, tuple):
    return _controls_of(branch, params, z, t, cond, **training)
  each = [
    _controls_of(branch, own, z, t, cond.replace(hint=hint, hint_scale=scale), **training)
    for own, hint, scale in zip(params, cond.hint, cond.hint_scale, strict=True)
  ]
  return jax.tree.map(lambda *residuals: sum(residuals[1:], start=residuals[0]), *each)


def _controls_of(
  branch: nn.Module, params: PyTree, z: Array, t: Array, cond: Cond, **training: Any
) -> PyTree:
  residuals = branch.apply({"params": params}, z, t, cond, **training)
  if cond.hint_scale is None:
    return residuals
  leaves, shape = jax.tree.flatten(residuals)
  scales = jnp.unstack(cond.hint_scale, axis=1)
  scaled = [
    a * s.astype(a.dtype).reshape(-1, *(1,) * (a.ndim - 1)) for a, s in zip(leaves, scales, strict=True)
  ]
  return jax.tree.unflatten(shape, scaled)


def drop_hints(hint: Array, rate: float, key: Array, index: Array) -> Array:
  """Each hint becomes all zero with probability rate, so that the branch also knows what to do without one.

  Shapes: hint: f32[B,H,W,Ch]; index: u32[B].
  """
  dropped = losses.per_example(lambda k: jax.random.bernoulli(k, rate), key, index)
  return jnp.where(dropped[:, None, None, None], 0.0, hint)
