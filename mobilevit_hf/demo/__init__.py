"""Web demos of models: a page with Gradio (extra `demo`), and a static page that runs in the browser."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
