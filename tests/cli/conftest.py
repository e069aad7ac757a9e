"""Fixtures of the command tests."""

import pytest


@pytest.fixture
def classifier(checkpoints):
    """Folder of a tiny classifier."""
    return checkpoints["image-classification"]
