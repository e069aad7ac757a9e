"""The LiteRT runtime."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
from litert_file import WEIGHTS, make_content

from mobilevit_hf.backends.fixed_size import silence_stderr
from mobilevit_hf.backends.litert_runtime import LiteRTRuntime

ADDED = WEIGHTS.reshape(16, 16, 3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    path.write_bytes(make_content())
    return path


def make_batch(size, seed=0):
    return np.random.default_rng(seed).random((size, 16, 16, 3), dtype=np.float32)


def test_batch_runs_image_by_image(path):
    runtime, batch = LiteRTRuntime(path, 1), make_batch(3)
    assert runtime.shape == (1, 16, 16, 3)
    (first,) = runtime(batch)
    (second,) = runtime(batch + 1)
    np.testing.assert_allclose(first, batch + ADDED)
    np.testing.assert_allclose(second, batch + 1 + ADDED)


def test_threads_do_not_mix_outputs(path):
    runtime = LiteRTRuntime(path, 2)
    batches = [make_batch(2, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for batch, (output,) in zip(batches, pool.map(runtime, batches), strict=True):
            np.testing.assert_allclose(output, batch + ADDED)


def test_wrong_size_is_a_one_line_error(path):
    with pytest.raises(ValueError, match=r"^inputs: got images of 8x16x3, expected 16x16x3, .*\.$"):
        LiteRTRuntime(path, 1)(np.zeros((1, 8, 16, 3), np.float32))


def test_standard_error_is_restored_after_concurrent_loads(capfd):
    """One thread at a time redirects it: the second would restore what the first redirected it to."""
    inside = []

    def load(index):
        with silence_stderr():
            inside.append(index)
            os.sched_yield()
            threads = tuple(inside)
            inside.remove(index)
        return threads

    with ThreadPoolExecutor(4) as pool:
        assert {len(threads) for threads in pool.map(load, range(400))} == {1}
    os.write(2, b"error")
    assert capfd.readouterr().err == "error"


def test_runtime_needs_no_torch_and_prints_nothing(run_python, path):
    code = f"""
        from pathlib import Path

        sys.modules |= dict.fromkeys(("torch", "transformers", "litert_torch", "ai_edge_quantizer"))
        import numpy as np
        from mobilevit_hf.backends.litert_runtime import LiteRTRuntime

        (output,) = LiteRTRuntime(Path({str(path)!r}), 1)(np.ones((2, 16, 16, 3), np.float32))
        print(output.shape)
    """
    assert run_python(code, quiet=True).strip() == "(2, 16, 16, 3)"
