"""Pictures of what was found, of a data set and of mistakes.

Plots are in `plots`, which is left out here: matplotlib's figures take longer to import than a picture to draw.
"""

from .files import save_picture
from .pictures import class_colors, draw_detection_mistakes, draw_detections, draw_mistakes, draw_sheet

__all__ = [
    "class_colors",
    "draw_detection_mistakes",
    "draw_detections",
    "draw_mistakes",
    "draw_sheet",
    "save_picture",
]
