from .app import build_app
from .limits import Limits
from .server import serve

__all__ = ["Limits", "build_app", "serve"]
