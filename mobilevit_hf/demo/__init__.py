"""A page to try models on, in a browser, by Gradio (the extra `demo`)."""

from .app import build_app, launch

__all__ = ["build_app", "launch"]
