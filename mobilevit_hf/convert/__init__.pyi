from .conversion import ConversionReport, convert_checkpoint

__all__ = ["ConversionReport", "convert_checkpoint"]
