"""Fixtures of the detection tests."""

from __future__ import annotations

import pytest
from torch import nn

from ..conftest import build_model


@pytest.fixture
def llama() -> nn.Module:
    return build_model("llama")
