"""Fixtures for the tests of the SSDLite functions."""

import pytest
import torch


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
