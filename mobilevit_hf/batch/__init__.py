"""Batch inference: predictions for datasets of any size, in several processes or on a cluster, resumable."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
