from .card import CARD_MARKER, is_ours, render_card, render_eval_results
from .client import HubError
from .metadata import PUBLISHED_FILES, Given, ModelFacts, collect_facts
from .repository import Publication, check_access, publish
from .space import publish_space

__all__ = [
    "CARD_MARKER",
    "PUBLISHED_FILES",
    "Given",
    "HubError",
    "ModelFacts",
    "Publication",
    "check_access",
    "collect_facts",
    "is_ours",
    "publish",
    "publish_space",
    "render_card",
    "render_eval_results",
]
