from .boxes import draw_detections
from .colors import class_colors
from .grids import (
    ClassifiedImage,
    ComparedImage,
    LabeledImage,
    SegmentedPhoto,
    draw_comparisons,
    draw_image_grid,
    draw_label_maps,
    draw_predictions,
)
from .image_files import save_image
from .masks import draw_overlay, save_palette_png
from .outcomes import Outcome, draw_outcomes

__all__ = [
    "ClassifiedImage",
    "ComparedImage",
    "LabeledImage",
    "Outcome",
    "SegmentedPhoto",
    "class_colors",
    "draw_comparisons",
    "draw_detections",
    "draw_image_grid",
    "draw_label_maps",
    "draw_outcomes",
    "draw_overlay",
    "draw_predictions",
    "save_image",
    "save_palette_png",
]
