"""Font of labels with characters that DejaVu Sans lacks."""

from types import SimpleNamespace

import matplotlib.font_manager
import pytest
from matplotlib import get_data_path
from PIL import ImageFont

from mobilevit_hf.visualization.text import LabelFont, find_font_file

STIX = f"{get_data_path()}/fonts/ttf/STIXGeneral.ttf"  # has circled letters, but no Chinese characters


@pytest.fixture(autouse=True)
def fonts(monkeypatch):
    """STIX is the only other font."""
    entry = SimpleNamespace(fname=STIX, style="normal", weight=400)
    monkeypatch.setattr(matplotlib.font_manager, "fontManager", SimpleNamespace(ttflist=[entry]))
    find_font_file.cache_clear()
    yield
    find_font_file.cache_clear()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("cat", "DejaVu Sans"),
        ("кошка", "DejaVu Sans"),
        ("Ⓐ", "STIXGeneral"),
        ("ⒶⒷ猫", "STIXGeneral"),
        ("Ⓐ日本語の猫", "DejaVu Sans"),
        ("日本語の猫", "DejaVu Sans"),
    ],
)
def test_another_font_is_used_if_it_has_most_of_the_missing_characters(name, family):
    assert ImageFont.truetype(find_font_file(name), 12).getname()[0] == family


def test_characters_that_the_font_lacks_are_boxes():
    assert LabelFont(["日本", "cat"], 12).fit("日本 cat", 200) == "□□ cat"
