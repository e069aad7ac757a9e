"""Exponential moving average: decay, warm-up, swap and resume."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from mobilevit_hf.training.ema import EMA


def make_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(5, 2))


def random_updates(model, steps, seed=0):
    """Change every tensor of the model, as training does; yields after each step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for value in model.state_dict().values():
                value += torch.randn(value.shape, generator=generator) if value.is_floating_point() else 1
        yield


def clone(state):
    return {name: value.clone() for name, value in state.items()}


def test_average_matches_official_code(reference_data):
    arrays = np.load(reference_data / "reference" / "train_ema.npz")

    def state(prefix):
        names = [name for name in arrays.files if name.startswith(f"{prefix}/")]
        return {name.partition("/")[2]: torch.from_numpy(arrays[name]) for name in names}

    model = make_network()
    model.load_state_dict(state("model_step0"))
    ema = EMA(model, 1 - 5e-4, warmup=False)
    for step in range(1, 6):
        model.load_state_dict(state(f"model_step{step}"))
        ema.update()
        averages = ema.state_dict()["averages"]
        expected = state(f"ema_step{step}")
        assert list(averages) == list(expected)
        for name, value in expected.items():
            if value.is_floating_point():
                torch.testing.assert_close(averages[name], value, rtol=2e-6, atol=1e-7)
        # The official code averages counters too and truncates them, so that they never increase.
        assert averages["1.num_batches_tracked"] == model[1].num_batches_tracked


@pytest.mark.parametrize("warmup", [False, True])
def test_average_matches_loop(warmup):
    model = make_network()
    ema = EMA(model, 0.9, warmup=warmup)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for number, _ in enumerate(random_updates(model, 120), 1):
        ema.update()
        decay = min(0.9, (1 + number) / (10 + number)) if warmup else 0.9
        for name, value in model.state_dict().items():
            old = expected[name]
            expected[name] = decay * old + (1 - decay) * value if value.is_floating_point() else value.double()
    for name, value in ema.state_dict()["averages"].items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_swap_is_temporary_and_in_place():
    model = make_network()
    ema = EMA(model, 0.9)
    for _ in random_updates(model, 3):
        ema.update()
    before, pointers = clone(model.state_dict()), [value.data_ptr() for value in model.state_dict().values()]
    averages = clone(ema.state_dict()["averages"])
    with ema.swap():
        assert all(torch.equal(value, averages[name]) for name, value in model.state_dict().items())
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match="inside"), ema.swap():
        raise RuntimeError("inside")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, averages[name]) for name, value in ema.state_dict()["averages"].items())
    assert [value.data_ptr() for value in model.state_dict().values()] == pointers


def test_restored_average_continues_bit_equal():
    model, other = make_network(), make_network()
    ema = EMA(model, 0.9)
    for _ in random_updates(model, 3):
        ema.update()
    file = io.BytesIO()
    torch.save([model.state_dict(), ema.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other_ema = EMA(other, 0.9)
    other.load_state_dict(weights)
    other_ema.load_state_dict(state)
    for _ in zip(random_updates(model, 4, seed=1), random_updates(other, 4, seed=1), strict=True):
        ema.update()
        other_ema.update()
    restored, expected = other_ema.state_dict(), ema.state_dict()
    assert restored["num_updates"] == expected["num_updates"] == 7
    assert all(torch.equal(value, expected["averages"][name]) for name, value in restored["averages"].items())
