from .app import build_app, launch
from .middleware import is_loopback
from .static_page import build_static_page, prepare_static_page
from .static_space import publish_static_space

__all__ = [
    "build_app",
    "build_static_page",
    "is_loopback",
    "launch",
    "prepare_static_page",
    "publish_static_space",
]
