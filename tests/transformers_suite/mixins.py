"""Make the fetched test mixins importable: `import_mixins("test_modeling_common")` and the like.

The source distribution carries the common test files but not the folders beside them. What they miss is looked up in
`stand_ins/`, which is searched second: a version that ships the real thing uses the real thing.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import transformers

from .fetch import SuiteUnavailable, fetch

# Not "tests", the name the files have in their own repository: that could be anybody's.
PACKAGE = "transformers_tests"
STAND_INS = Path(__file__).parent / "stand_ins"


def import_mixins(name: str) -> ModuleType:
    """Import one of the fetched test files.

    Raises:
        SuiteUnavailable: If they cannot be fetched, or miss something that nothing stands in for.
    """
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(fetch()), str(STAND_INS)]
        sys.modules[PACKAGE] = package
    # The files would run transformers' __init__ once more, from the source tree that they expect around them.
    installed = mock.patch("transformers.utils.direct_transformers_import", return_value=transformers)
    # The pipeline tests read at import which tiny models there are.
    tiny_models = mock.patch.dict(os.environ, TRANSFORMERS_TINY_MODEL_PATH=str(STAND_INS))
    # They carry markers of their own repository, which strict checking would refuse.
    any_marker = mock.patch.object(pytest.mark, "_config", None)
    with installed, tiny_models, any_marker:
        try:
            return importlib.import_module(f"{PACKAGE}.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith(f"{PACKAGE}."):
                raise
            raise SuiteUnavailable(f"{name}.py needs {error.name}, and nothing stands in for it") from error
