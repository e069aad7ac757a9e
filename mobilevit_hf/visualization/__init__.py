"""Pictures of what was found, of a data set and of mistakes.

Plots are in `plots`, which is left out here: matplotlib's figures take longer to import than a picture to draw.
"""

from .grids import class_colors, draw_detection_mistakes, draw_detections, draw_mistakes, draw_sheet
from .image_files import save_picture

__all__ = [
    "class_colors",
    "draw_detection_mistakes",
    "draw_detections",
    "draw_mistakes",
    "draw_sheet",
    "save_picture",
]
