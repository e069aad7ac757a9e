"""SSD's multibox loss (arXiv 1512.02325, section 2.2).

Shapes: B images, A anchors, K object classes (without the background).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .matcher_ssdlite import BACKGROUND


def mine_hard_negatives(background_loss: Tensor, is_positive: Tensor, negatives_per_positive: int) -> Tensor:
    """The background anchors that count in the loss: of each image the worst ones (SSD, section 2.2).

    Args:
        background_loss: (B, A) what each anchor would lose if it is on the background.
        is_positive: (B, A) which anchors have an object.
        negatives_per_positive: How many for each of them.

    Returns:
        (B, A) bool.
    """
    wanted = is_positive.sum(dim=1, keepdim=True) * negatives_per_positive
    worst_first = background_loss.masked_fill(is_positive, -torch.inf).argsort(dim=1, descending=True)
    ranks = torch.arange(worst_first.shape[1], device=worst_first.device).expand_as(worst_first)
    rank = torch.empty_like(worst_first).scatter_(1, worst_first, ranks)
    return (rank < wanted) & ~is_positive


def multibox_loss(
    logits: Tensor,
    locations: Tensor,
    target_labels: Tensor,
    target_locations: Tensor,
    *,
    negatives_per_positive: int = 3,
    smooth_l1_beta: float = 1.0,
    localization_loss_weight: float = 1.0,
) -> dict[str, Tensor]:
    """SSD's loss (section 2.2), both parts divided by the number of matched anchors in the batch, at least 1.

    Args:
        logits: (B, A, 1 + K), the background first.
        locations: (B, A, 4) predicted, see `encode_boxes`.
        target_labels: (B, A) of `match_anchors`.
        target_locations: (B, A, 4) to predict; only those of matched anchors count.
        negatives_per_positive: See `mine_hard_negatives`.
        smooth_l1_beta: Where the localisation loss turns from quadratic to linear.
        localization_loss_weight: Factor on the localisation loss.

    Returns:
        `loss_classification` and `loss_localization`, whose sum is the loss. Both are 0, with gradients of 0, when no
        image has an object.
    """
    is_positive = target_labels > BACKGROUND
    log_normalizer = logits.logsumexp(dim=-1)
    with torch.no_grad():
        background_loss = log_normalizer - logits[..., BACKGROUND]
        is_negative = mine_hard_negatives(background_loss, is_positive, negatives_per_positive)
    cross_entropy = log_normalizer - logits.gather(-1, target_labels[..., None]).squeeze(-1)
    target_locations = torch.where(is_positive[..., None], target_locations, locations.detach())
    distance = F.smooth_l1_loss(locations, target_locations, reduction="sum", beta=smooth_l1_beta)
    num_matched = is_positive.sum().clamp(min=1)
    return {
        "loss_classification": (cross_entropy * (is_positive | is_negative)).sum() / num_matched,
        "loss_localization": localization_loss_weight * distance / num_matched,
    }
