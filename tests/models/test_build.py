"""From a config's model section to a module."""

from __future__ import annotations

import types

import ml_collections
import pytest

from jaxdiff import models
from jaxdiff.errors import UserError
from tests.models import small


@pytest.mark.parametrize("kind", [dict, ml_collections.ConfigDict, lambda c: types.SimpleNamespace(**c)])
def test_any_form_of_config(kind):
  module = models.build(kind(small.UNET))
  assert isinstance(module, models.UNet)
  assert module.channel_mults == (1, 2)
  assert hash(module) is not None  # a static argument of jit
  assert models.tokens(kind(small.DIT | {"patch_size": 4}), 32) == 64
  assert models.tokens(kind(small.UNET), 32) == 1024


def test_unknown_names_are_said():
  with pytest.raises(UserError, match=r"unknown model \(config.model.name\) 'dti'. Did you mean 'dit'\?"):
    models.build(small.DIT | {"name": "dti"})
  with pytest.raises(
    UserError, match="unknown key of a dit in config.model 'patchsize'. Did you mean 'patch_"
  ):
    models.build(small.DIT | {"patchsize": 4})
