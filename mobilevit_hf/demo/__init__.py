"""Web demo of models with Gradio (extra `demo`)."""

from .app import build_app, launch
from .middleware import is_loopback

__all__ = ["build_app", "is_loopback", "launch"]
