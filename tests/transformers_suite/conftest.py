"""Run the fetched mixins offline, and fail a skipped test if the reference class passes it."""

import unittest
from functools import cache

import huggingface_hub.constants
import pytest

collect_ignore = ["stand_ins"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Disable the Hub for these tests only: other tests of the process use a Hub on the loopback device."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@cache
def passes(test_class: type[unittest.TestCase], name: str) -> bool:
    """Run a single test; a skipped test or subtest does not count as passed."""
    result = unittest.TestResult()
    unittest.TestSuite([test_class(name)]).run(result)
    return result.wasSuccessful() and not result.skipped


def reason_to_fail(test_class: type[unittest.TestCase], name: str) -> str | None:
    """Return why a test may not be skipped, if its class has the attribute `reference` (a test class or None)."""
    if not hasattr(test_class, "reference"):
        return None
    if not hasattr(test_class.reference, name):
        return "no reference class skips it"
    return f"{test_class.reference.__name__} passes" if passes(test_class.reference, name) else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    """Turn a skip into a failure if the reference class passes.

    The reference test runs immediately, so the rule applies to any selection of tests and in any worker process.
    """
    report = yield
    if report.skipped and issubclass(item.cls or object, unittest.TestCase):
        if reason := reason_to_fail(item.cls, item.name):
            report.outcome = "failed"
            report.longrepr = f"{item.cls.__name__} skips, but {reason}. {report.longrepr[2]}"
        elif item.config.get_verbosity() <= 0:
            # With a common reason, the summary is a single line.
            report.longrepr = (str(item.path), None, "Skipped: stock MobileViT skips this, too (reasons: -v)")
    return report
