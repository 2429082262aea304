"""benchmarks.spent: how the operations of a compiled step are told apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks import spent


def test_operations_belong_to_a_pass_and_a_kind():
  def step(weights, x):
    grads = jax.grad(lambda weights: jnp.sum(jnp.tanh(x @ weights) ** 2))(weights)
    return weights - 0.1 * grads

  groups = spent.groups(jax.jit(step).lower(jnp.ones((64, 64)), jnp.ones((256, 64))).compile().as_text())
  expected = {("forward", "products"), ("backward", "products"), ("update", "other")}
  assert expected <= set(groups.values()), groups


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
  assert rows[3] == "| backward | 75%, 150 ms | 0%, 0 ms | 75%, 150 ms |"
  assert rows[5] == "| all | 75%, 150 ms | 25%, 50 ms | 100%, 200 ms |"


@pytest.mark.parametrize("case", ["data", "unet_train"])
def test_only_steps_of_dits_can_be_asked_for(case, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["spent", "--only", case])
  with pytest.raises(SystemExit):
    spent.main()
  assert f"invalid choice: '{case}'" in capsys.readouterr().err
