"""Convert official, timm and stock transformers checkpoints."""

from .conversion import ConversionReport, convert_checkpoint

__all__ = ["ConversionReport", "convert_checkpoint"]
