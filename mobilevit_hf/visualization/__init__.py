"""Images of what was found, of a dataset and of mistakes.

Plots are in `plots`, which is left out here: matplotlib's figures take longer to import than an image to draw.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
