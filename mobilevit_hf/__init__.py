"""MobileViT for Hugging Face: fine-tune, publish and run a light vision model."""

import logging

import lazy_loader

from .registration import register

# Importing transformers with torchao installed, which ExecuTorch needs, makes torch warn about torchao's own code.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

__version__ = "0.2.0"

# Public names are listed in __init__.pyi and imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register()
