"""Colors of classes and of detection outcomes, chosen to stay apart for color-blind readers too."""

from collections.abc import Sequence
from functools import cache

import numpy as np

Color = tuple[int, int, int]

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/) without vermillion: reds are left to errors.
FIRST_COLORS: tuple[Color, ...] = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
)
# Outcomes of a detector's boxes, from the same palette; drawn with different line styles too.
TRUE_POSITIVE: Color = (0, 158, 115)
FALSE_POSITIVE: Color = (213, 94, 0)
MISSED: Color = (0, 114, 178)

# Candidates for further colors: steps per channel, bounds of the lightness (CIE L*), and smallest chroma.
CHANNEL_STEPS = 14
LIGHTNESS, MIN_CHROMA = (30, 88), 25
RED_HUES = (-20, 58)  # degrees in CIE a*b* between which a color of more than faint chroma is a red
MAX_RED_CHROMA = 30

RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE_POINT = (0.9505, 1, 1.089)
# Linear RGB as seen with deuteranopia (Machado et al. 2009, severity 1).
DEUTERANOPIA = np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]])


def class_colors(names: Sequence[str]) -> dict[str, Color]:
    """Return a color (R, G, B) in 0..255 for each class; equal lists of names have equal colors. No color is red."""
    names = list(dict.fromkeys(names))
    return dict(zip(names, _palette(len(names)), strict=True))


def text_color(background: Color) -> str:
    """Return black or white, whichever has the higher contrast by WCAG."""
    luminance = (np.array(background) / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722)
    return "black" if luminance > 0.179 else "white"


@cache
def _palette(count: int) -> tuple[Color, ...]:
    """Return the first colors of a sequence in which each is farthest from all before, by the worse of two views."""
    if count <= len(FIRST_COLORS):
        return FIRST_COLORS[:count]
    steps = np.linspace(0, 255, CHANNEL_STEPS).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    lightness, a, b = _to_lab(candidates).T
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a))
    is_red = (RED_HUES[0] < hue) & (hue < RED_HUES[1]) & (chroma > MAX_RED_CHROMA)
    is_legible = (LIGHTNESS[0] < lightness) & (lightness < LIGHTNESS[1]) & (chroma > MIN_CHROMA)
    candidates = candidates[is_legible & ~is_red]
    views = [_to_lab(candidates), _to_lab(candidates, DEUTERANOPIA)]
    chosen = list(FIRST_COLORS)
    distances = np.full(len(candidates), np.inf)
    for color in chosen:
        distances = np.minimum(distances, _distances(views, color))
    while len(chosen) < count:
        red, green, blue = candidates[distances.argmax()].astype(int).tolist()
        color = (red, green, blue)
        distances = np.minimum(distances, _distances(views, color))
        chosen.append(color)
    return tuple(chosen)


def _distances(views: Sequence[np.ndarray], color: Sequence[float]) -> np.ndarray:
    """Return the distances (N,) of candidates to a color: the normal one, or less if a view brings them together."""
    normal, simulated = (
        np.linalg.norm(view - _to_lab(np.array([color]), matrix), axis=1)
        for view, matrix in zip(views, (None, DEUTERANOPIA), strict=True)
    )
    return np.minimum(normal, 2 * simulated)


def _to_lab(colors: np.ndarray, matrix: np.ndarray | None = None) -> np.ndarray:
    """Colors (N, 3) in 0..255 → CIE L*a*b* (N, 3), in which distances are perceptual; `matrix` changes linear RGB."""
    values = np.asarray(colors, dtype=float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    if matrix is not None:
        linear = (linear @ matrix.T).clip(0, 1)
    x, y, z = np.cbrt(linear @ RGB_TO_XYZ.T / WHITE_POINT).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
