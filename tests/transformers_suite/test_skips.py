"""Skipped tests fail if the reference class passes them."""

import shutil
import subprocess
import sys
from pathlib import Path

SAMPLE = """
from unittest import TestCase, skip

class Stock(TestCase):
    def test_fine(self): pass
    def test_skipped(self): pass
    def test_decorated(self): pass
    def test_subtest(self): pass
    def test_skipped_by_both(self): self.skipTest("both")
    def test_skipped_by_stock(self): self.skipTest("stock only")

class Model(TestCase):
    reference = Stock
    def test_fine(self): pass
    def test_skipped(self): self.skipTest("model only")
    @skip("model only")
    def test_decorated(self): pass
    def test_subtest(self):
        with self.subTest("part"):
            self.skipTest("model only")
    def test_skipped_by_both(self): self.skipTest("both")
    def test_skipped_by_stock(self): pass

class NoReference(TestCase):
    reference = None
    def test_fine(self): pass
    def test_skipped(self): self.skipTest("not allowed")
"""


def test_skip_fails_if_reference_passes(tmp_path):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", "-p", "no:xdist", "."]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    failed = {line.split()[1] for line in output.splitlines() if line.startswith(("FAILED", "SUBFAILED"))}
    names = ("Model::test_skipped", "Model::test_decorated", "Model::test_subtest", "NoReference::test_skipped")
    assert failed == {f"test_sample.py::{name}" for name in names}, output
    assert "Model skips, but Stock passes. Skipped: model only" in output
    assert "4 failed" in output.splitlines()[-1]
