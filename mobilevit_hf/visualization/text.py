"""Names from anywhere as labels: on one line, in a font that has their letters, no wider than there is room."""

from bisect import bisect_right
from functools import cache
from itertools import chain, groupby, islice
from pathlib import Path
from unicodedata import combining

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

# No label has room for more; so many accents a letter may have in writing that is read.
MAX_CHARACTERS = 1000
MAX_MARKS = 3

# What stands for a character that no font has: the first of these that is in the font.
SUBSTITUTES = "\N{REPLACEMENT CHARACTER}?"

# The invisible characters that belong to words. Others turn the order of letters and digits.
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


@cache
def font_file(characters: str) -> str:
    """DejaVu Sans, which comes with matplotlib, or the system's font that has most of the characters it lacks."""
    needed = {ord(character) for character in characters + "0123456789.…" if not character.isspace()}

    def lacks(file: str) -> int:
        return len(needed - set(FT2Font(file).get_charmap()))

    default = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    if not lacks(default):
        return default
    from matplotlib.font_manager import fontManager  # looks for all fonts, which takes a second the first time

    upright = [entry for entry in fontManager.ttflist if entry.style == "normal" and entry.weight == 400]
    return min([default, *(entry.fname for entry in upright if "LastResort" not in entry.fname)], key=lacks)


def fit_label(name: str, font: ImageFont.FreeTypeFont, width: float, suffix: str = "") -> str:
    """A label on one line of characters that the font has, its name cut where there is no room for all of it.

    Args:
        name: Any text.
        font: Of the label.
        width: Of the label at most, in pixels; only the suffix and a sign that the name was cut may be wider.
        suffix: What follows the name and is never cut.
    """
    known = _characters(font.path)
    unknown = next((character for character in SUBSTITUTES if character in known), "")

    def write(name: str, end: str) -> str:
        return "".join(character if character in known else unknown for character in name + end) + suffix

    name = _limit_marks(" ".join(name[:MAX_CHARACTERS].split()))
    if font.getlength(write(name, "")) <= width:
        return write(name, "")
    too_long = bisect_right(range(len(name)), width, key=lambda length: font.getlength(write(name[:length], "…")))
    return write(name[: max(0, too_long - 1)], "…")


def _limit_marks(text: str) -> str:
    """Without the accents that would pile up high above a letter or hang down far below it."""
    runs = groupby(text, lambda character: combining(character) > 0)
    return "".join(chain.from_iterable(islice(run, MAX_MARKS) if marks else run for marks, run in runs))


@cache
def _characters(file: str) -> frozenset[str]:
    return frozenset(c for c in map(chr, FT2Font(file).get_charmap()) if c.isprintable() or c in JOINERS)
