"""Fixtures of the metric tests."""

import evaluate
import pytest

from mobilevit_hf.metrics import path


@pytest.fixture(scope="package", autouse=True)  # one folder: evaluate imports its package of modules once
def evaluate_caches(tmp_path_factory):
    """Cache folders of evaluate, for data and for copies of metric modules, by the name of the setting."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("HF_METRICS_CACHE", "HF_MODULES_CACHE")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folders["HF_METRICS_CACHE"])
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folders["HF_MODULES_CACHE"])
        patch.syspath_prepend(folders["HF_MODULES_CACHE"])
        yield folders


@pytest.fixture
def load(tmp_path):
    """Function that loads a metric by path, with an empty cache."""
    return lambda name, **kwargs: evaluate.load(path(name), cache_dir=str(tmp_path), **kwargs)
