"""Make the fetched test mixins importable: `import_mixins("test_modeling_common")` and the like.

The source distribution contains the common test files but not all modules that they import. Missing modules are
imported from `stand_ins/`, which is searched second, so that modules of the distribution take precedence.
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

# Not "tests", their name in the transformers repository, which may conflict with other packages.
PACKAGE = "transformers_tests"
STAND_INS = Path(__file__).parent / "stand_ins"


def import_mixins(name: str) -> ModuleType:
    """Import one of the fetched test files.

    Raises:
        SuiteUnavailable: If the download fails, or a module without stand-in is missing.
    """
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(fetch()), str(STAND_INS)]
        sys.modules[PACKAGE] = package
    # The files would import transformers again, from the source tree that they expect around them.
    installed = mock.patch("transformers.utils.direct_transformers_import", return_value=transformers)
    # The pipeline tests read the list of tiny models at import.
    tiny_models = mock.patch.dict(os.environ, TRANSFORMERS_TINY_MODEL_PATH=str(STAND_INS))
    # They use markers of their repository, which --strict-markers would reject.
    any_marker = mock.patch.object(pytest.mark, "_config", None)
    with installed, tiny_models, any_marker:
        try:
            return importlib.import_module(f"{PACKAGE}.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith(f"{PACKAGE}."):
                raise
            raise SuiteUnavailable(f"{name}.py requires {error.name}, which has no stand-in") from error
