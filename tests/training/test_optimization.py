"""Learning rate schedule and optimizer."""

import json
import math

import pytest
import torch
from torch import nn

import mobilevit_hf
from mobilevit_hf.training.optimization import Schedule, create_optimizer


@pytest.mark.parametrize("name", ["cls", "det"])
def test_schedule_matches_official_code(name, reference_data):
    recipe = json.loads((reference_data / "reference" / "train_lr.json").read_text())[name]
    settings = recipe["settings"]
    peak = settings["max_lr"]
    schedule = Schedule(
        peak,
        min_lr_rate=settings["min_lr"] / peak,
        warmup_steps=settings["warmup_iterations"],
        warmup_lr_rate=settings["warmup_init_lr"] / peak,
    )
    assert len(recipe["points"]) > 10
    for point in recipe["points"]:
        learning_rate = schedule(point["curr_iter"], point["epoch"] / settings["period"])
        assert learning_rate == pytest.approx(point["lr"], rel=1e-9), point


def test_warmup_can_be_a_fraction_of_the_training():
    schedule = Schedule(2.0, min_lr_rate=0.1, warmup_steps=0.2, warmup_lr_rate=0.25)
    assert [schedule(0, 0.0), schedule(77, 0.1), schedule(0, 0.15)] == pytest.approx([0.5, 1.25, 1.625])
    for progress in (0.3, 0.5, 0.8):
        assert schedule(0, progress) == pytest.approx(0.2 + 0.9 * (1 + math.cos(math.pi * progress)))
    assert schedule(10**6, 1.0) == schedule(10**6, 1.3) == pytest.approx(0.2)
    assert Schedule(2.0)(0, 0.0) == 2
    assert Schedule(2.0)(0, 1.0) == pytest.approx(0)


@pytest.fixture(scope="module")
def models(tiny_model, detector_dir):
    return {
        "classifier": tiny_model(mobilevit_hf.MobileViTForImageClassification),
        "detector": mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(detector_dir),
    }


def decayed_parameters(model, **options):
    """Return the names of parameters that weight decay changes, leaves unchanged, and can't change (zeros)."""
    optimizer = create_optimizer(model, learning_rate=0.1, weight_decay=0.5, **options)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    after = dict(model.named_parameters())
    decayed = {name for name, value in before.items() if torch.allclose(after[name], value * (1 - 0.1 * 0.5))}
    same = {name for name, value in before.items() if torch.equal(after[name], value)}
    model.load_state_dict(before, strict=False)
    assert decayed | same == set(before)
    return decayed - same, same - decayed, decayed & same


@pytest.mark.parametrize("name", ["classifier", "detector"])
def test_norms_and_biases_can_be_excluded_from_weight_decay(name, models):
    model = models[name]
    norms_and_biases = set()
    for path, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            if own == "bias" or isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                norms_and_biases.add(f"{path}.{own}")
    everything = {path for path, _ in model.named_parameters()}
    assert 0 < len(norms_and_biases) < len(everything)
    decayed, same, zero = decayed_parameters(model, decay_norms_and_biases=False)
    assert decayed == everything - norms_and_biases - zero
    assert same == norms_and_biases - zero
    assert not zero
    assert decayed_parameters(model)[0] == everything


def test_frozen_parameters_are_excluded(models):
    model = models["classifier"]
    model.mobilevit.requires_grad_(False)
    try:
        optimizer = create_optimizer(model, learning_rate=0.1, weight_decay=0.1, betas=(0.8, 0.95))
        assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [
            id(p) for p in model.classifier.parameters()
        ]
        assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    finally:
        model.mobilevit.requires_grad_(True)
