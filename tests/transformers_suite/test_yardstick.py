"""A skip is a failure where the yardstick passes."""

import shutil
import subprocess
import sys
from pathlib import Path

SAMPLE = """
from unittest import TestCase, skip

class Stock(TestCase):
    def test_fine(self): pass
    def test_skipped_by_ours(self): pass
    def test_decorated(self): pass
    def test_subtest(self): pass
    def test_skipped_by_both(self): self.skipTest("neither")
    def test_skipped_by_stock(self): self.skipTest("stock only")

class Ours(TestCase):
    yardstick = Stock
    def test_fine(self): pass
    def test_skipped_by_ours(self): self.skipTest("ours only")
    @skip("ours only")
    def test_decorated(self): pass
    def test_subtest(self):
        with self.subTest("part"):
            self.skipTest("ours only")
    def test_skipped_by_both(self): self.skipTest("neither")
    def test_skipped_by_stock(self): pass

class Strict(TestCase):
    yardstick = None
    def test_fine(self): pass
    def test_skipped(self): self.skipTest("nothing may be")
"""


def test_skips_are_measured(tmp_path):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", "-p", "no:xdist", "."]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    failed = {line.split()[1] for line in output.splitlines() if line.startswith(("FAILED", "SUBFAILED"))}
    names = ("Ours::test_skipped_by_ours", "Ours::test_decorated", "Ours::test_subtest", "Strict::test_skipped")
    assert failed == {f"test_sample.py::{name}" for name in names}, output
    assert "Ours skips, but Stock passes. Skipped: ours only" in output
    assert "4 failed" in output.splitlines()[-1]
