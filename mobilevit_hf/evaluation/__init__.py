"""Evaluate a model on a dataset: metrics of the pipeline's predictions with confidence intervals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
