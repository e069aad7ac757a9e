"""Labels of arbitrary class names: one line, in a font with their characters, no wider than the available space."""

import importlib.util
from bisect import bisect_right
from collections.abc import Iterable
from functools import cache
from importlib.machinery import ModuleSpec
from itertools import chain, groupby, islice
from pathlib import Path
from typing import cast
from unicodedata import combining

from PIL import ImageFont

MAX_CHARACTERS = 1000  # longer names fit into no label
MAX_MARKS = 3  # more combining marks per letter than in any written language would leave the line

# Characters of most names, which DejaVu Sans has: their labels need no import of matplotlib, which takes 0.2 s.
PLAIN_CHARACTERS = frozenset(map(chr, range(ord(" "), ord("~") + 1))) | {"…"}

# Replacements of characters that the font lacks: the first of these that it has.
SUBSTITUTES = "\N{WHITE SQUARE}\N{REPLACEMENT CHARACTER}?"

# Fraction of the characters missing in DejaVu Sans that another font must have: with one or two of them, labels are no
# more legible, and all others change their font.
MIN_COVERAGE = 0.5

# Invisible characters that belong to words. Others, such as directional overrides, would reorder a score's digits.
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


class LabelFont:
    """A font for labels, of a size in pixels, that has the characters of the names if any font does."""

    def __init__(self, names: Iterable[str], size: int) -> None:
        self.size = size
        self.file = find_font_file("".join(names))
        self.font = ImageFont.truetype(self.file, size)

    def fit(self, name: str, width: float, suffix: str = "", *, is_file: bool = False) -> str:
        """Return a label on one line: the name, truncated to a width in pixels, and the suffix, never truncated.

        A class name loses its end. The path of a file loses its folders, then the middle of its name: the start and
        the end of names differ.
        """
        is_plain = self.file == _default_font_file() and PLAIN_CHARACTERS.issuperset(name + suffix)
        characters = PLAIN_CHARACTERS if is_plain else _font_characters(self.file)
        substitute = next((character for character in SUBSTITUTES if character in characters), "")

        def format_label(name: str) -> str:
            return "".join(character if character in characters else substitute for character in name) + suffix

        name = _limit_marks(" ".join(name[:MAX_CHARACTERS].split()))
        for whole in (name, name.rpartition("/")[2]) if is_file else (name,):
            if self.font.getlength(format_label(whole)) <= width:
                return format_label(whole)
            name = whole

        def truncate(length: int) -> str:
            tail = length // 2 if is_file else 0
            return format_label(f"{name[: length - tail]}…{name[len(name) - tail :]}")

        too_long = bisect_right(range(len(name)), width, key=lambda length: self.font.getlength(truncate(length)))
        return truncate(max(0, too_long - 1))


@cache
def find_font_file(characters: str) -> str:
    """Return the path of matplotlib's DejaVu Sans, or of a system font with most of the characters that it lacks."""
    default = _default_font_file()
    if PLAIN_CHARACTERS.issuperset(characters):
        return default
    from matplotlib.ft2font import FT2Font

    needed = {ord(character) for character in characters + "0123456789.…" if not character.isspace()}

    def num_missing(file: str) -> int:
        return len(needed - set(FT2Font(file).get_charmap()))

    limit = (1 - MIN_COVERAGE) * num_missing(default)
    if not limit:
        return default
    from matplotlib.font_manager import fontManager  # searches for fonts, which takes a second the first time

    upright = [entry for entry in fontManager.ttflist if entry.style == "normal" and entry.weight == 400]
    best = min([default, *(entry.fname for entry in upright if "LastResort" not in entry.fname)], key=num_missing)
    return best if num_missing(best) <= limit else default


def _limit_marks(text: str) -> str:
    """Remove combining marks that would stack far above or below a letter."""
    runs = groupby(text, lambda character: combining(character) > 0)
    return "".join(chain.from_iterable(islice(run, MAX_MARKS) if marks else run for marks, run in runs))


@cache
def _default_font_file() -> str:
    package = cast(ModuleSpec, importlib.util.find_spec("matplotlib"))  # a dependency of this package
    return str(Path(str(package.origin)).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def _font_characters(file: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(c for c in map(chr, FT2Font(file).get_charmap()) if c.isprintable() or c in JOINERS)
