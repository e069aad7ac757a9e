from .augmented import augmented_images
from .class_counts import count_classes
from .report import write_report

__all__ = ["augmented_images", "count_classes", "write_report"]
