"""Published MobileViT variants (Table 4 of the paper)."""

from typing import Any

# `hidden_sizes`: transformer widths d of the three MobileViT blocks. `neck_hidden_sizes`: channels of the stem, of the
# five encoder layers and of the last 1x1 convolution.
VARIANTS: dict[str, dict[str, Any]] = {
    "xxs": {
        "hidden_sizes": (64, 80, 96),
        "neck_hidden_sizes": (16, 16, 24, 48, 64, 80, 320),
        "expand_ratio": 2.0,
        "hidden_dropout_prob": 0.05,
    },
    "xs": {
        "hidden_sizes": (96, 120, 144),
        "neck_hidden_sizes": (16, 32, 48, 64, 80, 96, 384),
        "expand_ratio": 4.0,
        "hidden_dropout_prob": 0.1,
    },
    "s": {
        "hidden_sizes": (144, 192, 240),
        "neck_hidden_sizes": (16, 32, 64, 96, 128, 160, 640),
        "expand_ratio": 4.0,
        "hidden_dropout_prob": 0.1,
    },
}

# Variants by their name on the Hub.
HUB_NAMES = {"mobilevit-xx-small": "xxs", "mobilevit-x-small": "xs", "mobilevit-small": "s"}
