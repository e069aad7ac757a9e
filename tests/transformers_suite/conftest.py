"""Run the fetched mixins off the network, and allow a skip only where the yardstick does not pass either."""

import unittest
from functools import cache

import huggingface_hub.constants
import pytest

collect_ignore = ["stand_ins"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No Hub, for these tests only: others of the same process talk to a Hub on the loopback device."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@cache
def passes(test_class: type[unittest.TestCase], name: str) -> bool:
    """Run one test by itself; skipping, as a whole or in a subtest, is not passing."""
    result = unittest.TestResult()
    unittest.TestSuite([test_class(name)]).run(result)
    return result.wasSuccessful() and not result.skipped


def objection(test_class: type[unittest.TestCase], name: str) -> str | None:
    """What speaks against skipping a test, if the class has a `yardstick`: a class to measure up to, or None."""
    if not hasattr(test_class, "yardstick"):
        return None
    if not hasattr(test_class.yardstick, name):
        return "nothing may be skipped without a yardstick"
    return f"{test_class.yardstick.__name__} passes" if passes(test_class.yardstick, name) else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    """Turn a skip that there is an objection to into a failure.

    The yardstick's test runs on the spot, so the rule holds for any selection of tests and in any worker process.
    """
    report = yield
    if report.skipped and issubclass(item.cls or object, unittest.TestCase):
        if reason := objection(item.cls, item.name):
            report.outcome = "failed"
            report.longrepr = f"{item.cls.__name__} skips, but {reason}. {report.longrepr[2]}"
        elif item.config.get_verbosity() <= 0:
            # Without a reason of its own each, the summary tells of all of them in one line.
            report.longrepr = (str(item.path), None, "Skipped: stock MobileViT skips this too (-v tells why)")
    return report
