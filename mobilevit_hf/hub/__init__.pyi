from .card import CARD_MARKER, is_generated, render_card, render_eval_results
from .client import HubError
from .metadata import PUBLISHED_FILES, CardOptions, ModelMetadata, collect_metadata
from .repository import Publication, check_access, publish
from .space import publish_space

__all__ = [
    "CARD_MARKER",
    "PUBLISHED_FILES",
    "CardOptions",
    "HubError",
    "ModelMetadata",
    "Publication",
    "check_access",
    "collect_metadata",
    "is_generated",
    "publish",
    "publish_space",
    "render_card",
    "render_eval_results",
]
