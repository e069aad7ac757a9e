from .boxes import class_colors, draw_detections
from .grids import draw_detection_mistakes, draw_image_grid, draw_mistakes
from .image_files import save_image

__all__ = [
    "class_colors",
    "draw_detection_mistakes",
    "draw_detections",
    "draw_image_grid",
    "draw_mistakes",
    "save_image",
]
