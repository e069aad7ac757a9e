"""What tests of engines share."""

import pytest

from mobilevit_hf.backends import formats


def need(engine):
    """Skip the test where what an engine needs is not installed."""
    for package in formats.FORMATS[engine].packages:
        pytest.importorskip(package)
