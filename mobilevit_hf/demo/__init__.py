"""Web demo of models with Gradio (extra `demo`)."""

from .app import build_app, launch

__all__ = ["build_app", "launch"]
