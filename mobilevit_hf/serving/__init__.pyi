from .app import build_app
from .limits import Limits
from .server import load_pipeline, serve

__all__ = ["Limits", "build_app", "load_pipeline", "serve"]
