"""benchmarks.spent: how the operations of a compiled step are told apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks import spent


def test_operations_belong_to_a_pass_and_a_kind():
  def step(weights, kernel, x):
    def loss(weights, kernel):
      image = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
      return jnp.sum(jnp.tanh(image.reshape(-1, 64) @ weights) ** 2)

    grads = jax.grad(loss, argnums=(0, 1))(weights, kernel)
    return tuple(old - 0.1 * new for old, new in zip((weights, kernel), grads, strict=True))

  args = jnp.ones((64, 64)), jnp.ones((3, 3, 8, 64)), jnp.ones((2, 16, 16, 8))
  groups = spent.groups(jax.jit(step).lower(*args).compile().as_text())
  found = set(groups.values())
  expected = {(p, kind) for p in ("forward", "backward") for kind in ("products", "convolutions", "other")}
  assert expected <= found and ("update", "other") in found


PROGRAM = """
%inner (a: f32[2,2], b: f32[2,2]) -> f32[2,2] {
  ROOT %dot.1 = f32[2,2]{1,0} dot(%a, %b), metadata={op_name="jit(step)/jvp(DiT)/dot_general"}
}

ENTRY %main (x: f32[2,2]) -> (f32[2,2], f32[2,2]) {
  %x = f32[2,2]{1,0} parameter(0)
  %fusion.2 = f32[2,2]{1,0} fusion(%x, %x), kind=kCustom, calls=%inner, metadata={op_name="jit(step)/transpose(jvp(DiT))/dot_general"}
  %call.3 = f32[2,2]{1,0} call(%x), to_apply=%other, metadata={op_name="jit(step)/add"}
  ROOT %tuple.4 = (f32[2,2]{1,0}, f32[2,2]{1,0}) tuple(%fusion.2, %call.3)
}
"""


def test_a_fusion_is_what_it_holds_and_what_stands_around_others_does_not_count():
  groups = spent.groups(PROGRAM)
  assert groups["fusion.2"] == ("backward", "products") and groups["tuple.4"] == ("update", "other")
  assert "call.3" not in groups
  found = spent.shares({"fusion.2": 30.0, "tuple.4": 10.0, "call.3": 99.0, "unknown": 1.0}, groups)
  assert found == {("backward", "products"): 0.75, ("update", "other"): 0.25}
  rows = spent.table(found, 200.0).splitlines()
  assert rows[3] == "| backward | 75%, 150 ms | 0%, 0 ms | 0%, 0 ms | 75%, 150 ms |"
  assert rows[5] == "| all | 75%, 150 ms | 0%, 0 ms | 25%, 50 ms | 100%, 200 ms |"


def test_only_cases_with_a_step_can_be_asked_for(monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["spent", "--only", "data"])
  with pytest.raises(SystemExit):
    spent.main()
  assert "invalid choice: 'data'" in capsys.readouterr().err
