"""Fixtures of the conversion tests: official and timm checkpoints."""

import pytest
import torch
from formula import formula_state_dict, official_shapes, timm_model


@pytest.fixture(scope="session")
def official_classifier(tmp_path_factory):
    """File of an official XXS classifier with 10 classes."""
    file = tmp_path_factory.mktemp("official") / "cls.pt"
    torch.save(formula_state_dict(official_shapes("classification", 10)), file)
    return file


@pytest.fixture(scope="session")
def official_segmenter(tmp_path_factory):
    """File of an official XXS DeepLabv3 with 4 classes."""
    file = tmp_path_factory.mktemp("official") / "seg.pt"
    torch.save(formula_state_dict(official_shapes("segmentation", 4)), file)
    return file


@pytest.fixture(scope="session")
def timm_file(tmp_path_factory):
    """File of a timm classifier with 5 classes."""
    file = tmp_path_factory.mktemp("timm") / "model.pth"
    torch.save(timm_model().state_dict(), file)
    return file


@pytest.fixture
def output_dir(tmp_path):
    """Output directory of a conversion; does not exist yet."""
    return tmp_path / "out"
