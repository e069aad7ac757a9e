"""A page to try models on, in a browser: `pip install 'mobilevit-hf[demo]'`."""

from .app import build_app, launch

__all__ = ["build_app", "launch"]
