"""The system's Chromium, driven by playwright."""

import shutil
from contextlib import contextmanager

import pytest

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome", "chrome")


# A camera that shows a moving pattern, and access to it without a question.
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@contextmanager
def open_chromium(*arguments):
    """Yield playwright's browser object; skip the test if playwright or Chromium is not installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()
