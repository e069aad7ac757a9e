from .grids import class_colors, draw_detection_mistakes, draw_detections, draw_image_grid, draw_mistakes
from .image_files import save_image

__all__ = [
    "class_colors",
    "draw_detection_mistakes",
    "draw_detections",
    "draw_mistakes",
    "draw_image_grid",
    "save_image",
]
