"""Fixtures of the tests of backends."""

import pytest
from backend_support import make_images


@pytest.fixture(autouse=True, scope="module")
def _shared_cache(tmp_path_factory):
    """A cache of exported models for the test file: each model is exported once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBILEVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model_dirs(checkpoints, detector_dir):
    """Folders with a tiny model and its image processor, by task."""
    return {**checkpoints, "object-detection": detector_dir}


@pytest.fixture(scope="session")
def images():
    """Images of several shapes."""
    return make_images()
