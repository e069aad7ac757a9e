"""Images of detections, datasets and mistakes.

`plots` is not imported here: importing matplotlib's figures takes longer than drawing an image.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
