"""SSD's multibox loss (arXiv 1512.02325, section 2.2), for B images, A anchors and K object classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .matcher_ssdlite import BACKGROUND


def mine_hard_negatives(background_loss: Tensor, is_positive: Tensor, negatives_per_positive: int) -> Tensor:
    """Select the background anchors with the highest loss in each image (hard negative mining): (B, A) bool.

    Args:
        background_loss: (B, A) loss of each anchor with the background as target.
        is_positive: (B, A) bool, True for matched anchors.
        negatives_per_positive: Number of selected anchors per matched anchor.
    """
    num_negatives = is_positive.sum(dim=1, keepdim=True) * negatives_per_positive
    order = background_loss.masked_fill(is_positive, -torch.inf).argsort(dim=1, descending=True)
    return (order.argsort(dim=1) < num_negatives) & ~is_positive


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
    """Compute SSD's loss, normalized by the number of matched anchors in the batch (at least 1).

    Args:
        logits: (B, A, 1 + K), background at index 0.
        locations: (B, A, 4) predicted locations, see `encode_boxes`.
        target_labels: (B, A), see `match_anchors`.
        target_locations: (B, A, 4); those of background anchors are ignored.
        negatives_per_positive: See `mine_hard_negatives`.
        smooth_l1_beta: Transition of the localization loss from quadratic to linear.
        localization_loss_weight: Weight of the localization loss.

    Returns:
        `loss_ce` (classification) and `loss_bbox` (localization), as DETR names them; the loss is their sum. Both, and
        their gradients, are 0 if no image has an object.
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
        "loss_ce": (cross_entropy * (is_positive | is_negative)).sum() / num_matched,
        "loss_bbox": localization_loss_weight * distance / num_matched,
    }
