"""Measure a model on images whose answers are known: what `pipeline` answers, counted as papers count it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
