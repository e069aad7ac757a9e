"""Links, anchors and navigation of the README and the documentation, and the worked diffs of its architecture page."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
DIFFS = sorted((DOCS / "diffs").glob("*.diff"))
MAX_DIFF_LINES = 150
# Tests that list all heads, formats or runtimes, by the diff that adds one.
TESTS_OF_LISTS = {
    "head.diff": ["tests/test_public_api.py"],
    "format.diff": ["tests/test_data_docs.py", "tests/cli/test_startup.py"],
    "engine.diff": ["tests/cli/test_startup.py", "tests/backends/test_benchmark.py", "tests/backends/test_export.py"],
}
REPOSITORY = re.compile(r"https://github\.com/mobilevit-hf/mobilevit-hf/(?:blob|tree)/main/")


def relative_name(path):
    return path.relative_to(ROOT).as_posix()


def find_links(page):
    """Return the targets of a page's links and images, without those to other repositories and hosts."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    links = [
        child.attrGet("href") or child.attrGet("src")
        for token in tokens
        for child in token.children or ()
        if child.type in ("link_open", "image")
    ]
    return [link for link in links if REPOSITORY.match(link) or not re.match(r"[a-z]+:", link)]


def find_anchors(page):
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    titles = [
        "".join(child.content for child in tokens[index + 1].children)
        for index, token in enumerate(tokens)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=relative_name)
def test_links_lead_to_files_and_headings(page):
    """The site has the files of docs/ only: its pages link to others by their address on GitHub."""
    for link in find_links(page):
        path, _, anchor = link.partition("#")
        if REPOSITORY.match(path):
            target = ROOT / REPOSITORY.sub("", path)
        else:
            target = (page.parent / path).resolve() if path else page
            assert target.is_relative_to(DOCS if page.is_relative_to(DOCS) else ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in find_anchors(target), link


def list_pages(nav):
    """Return the pages of a navigation with sections."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in list_pages(entry)]


def test_navigation_lists_each_page_once():
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(list_pages(config["project"]["nav"])) == sorted(pages)


def test_architecture_page_shows_each_diff():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert len(DIFFS) == 3
    for path in DIFFS:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < MAX_DIFF_LINES, path.name
        assert f"(diffs/{path.name})" in page, path.name


@pytest.mark.parametrize("path", DIFFS, ids=relative_name)
@pytest.mark.slow
def test_diff_applies_and_its_tests_pass(path, tmp_path):
    """In a copy of the project. If a change of the project breaks it, adapt the diff: readers start from it."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in ("mobilevit_hf", "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["git", "apply", path], cwd=tmp_path, check=True)
    changed = re.findall(r"^\+\+\+ b/(tests/.*/test_\w+\.py)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert changed
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    for options in (["-m", "slow or not slow", *changed], TESTS_OF_LISTS[path.name]):
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *options]
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout
