"""Time a training step of classification or segmentation: stock transformers, timm and ours, in float32 on the CPU."""

from typing import Any

import side_by_side
from side_by_side import (
    CANDIDATES,
    CLASSIFICATION,
    LOADED,
    NUM_CLASSES,
    SEGMENTATION,
    SEGMENTER,
    Case,
    build_model,
    logits_of,
    random_images,
)
from workers import OURS, Call

SETTINGS = {
    CLASSIFICATION: CANDIDATES,
    SEGMENTATION: {name: CANDIDATES[name] for name in ("stock", LOADED, OURS)},
}
NO_DROPOUT = dict.fromkeys(("hidden_dropout_prob", "classifier_dropout_prob", "aspp_dropout_prob"), 0.0)


def random_labels(case: Case) -> Any:
    """Return a batch of random labels: (B,), or (B, H, W) for segmentation."""
    import torch

    if case.setting == SEGMENTATION:
        return torch.randint(SEGMENTER["num_labels"], (case.batch, case.size, case.size))
    return torch.randint(NUM_CLASSES, (case.batch,))


def make_loss(candidate: str, case: Case, model: Any) -> Any:
    """Return a function (images, labels) that returns the cross entropy; of segmentation, at the labels' size."""
    from torch.nn import functional as F

    if case.setting == CLASSIFICATION:
        return lambda images, labels: F.cross_entropy(logits_of(model(images)), labels, label_smoothing=0.1)
    if candidate != OURS:
        return lambda images, labels: model(pixel_values=images, labels=labels).loss
    from mobilevit_hf.training.segmentation_loss import SegmentationLoss

    loss = SegmentationLoss()
    return lambda images, labels: loss(model(pixel_values=images).logits, labels)["loss"]


def build(candidate: str, case: Case) -> Call:
    """Return a training step: forward pass, cross entropy, backward pass, AdamW step.

    Ours is that of `mobilevit train`, which also clips the gradient norm and averages the weights.
    """
    import torch

    model, ema = build_model(candidate, case).train(), None
    if candidate == OURS:
        from mobilevit_hf.modeling.layers_cpu import use_fast_layers
        from mobilevit_hf.training.ema import EMA

        use_fast_layers(model)
        ema = EMA(model, decay=0.998)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    compute_loss = make_loss(candidate, case, model)
    images, labels = random_images(candidate, case), random_labels(case)

    def call() -> None:
        optimizer.zero_grad()
        compute_loss(images, labels).backward()
        if ema:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if ema:
            ema.update()

    return call


def check(case: Case) -> str:
    """Return the difference between the gradients of stock and ours with the same weights and no dropout."""
    import dataclasses

    import torch

    torch.manual_seed(0)
    case = dataclasses.replace(case, batch=4, fields=case.fields | NO_DROPOUT)
    stock, ours = build_model("stock", case).train(), build_model(OURS, case).train()
    stock.load_state_dict(ours.state_dict())
    images, labels = random_images(OURS, case), random_labels(case)
    for candidate, model in (("stock", stock), (OURS, ours)):
        make_loss(candidate, case, model)(images, labels).backward()
    expected = torch.cat([weight.grad.flatten() for weight in stock.parameters()])
    gradient = torch.cat([weight.grad.flatten() for weight in ours.parameters()])
    difference = ((gradient - expected).norm() / expected.norm()).item()
    return (
        f"{case.variant}, {case.setting}: with the same weights and no dropout, the gradients of ours and stock "
        f"differ by {difference:.1e} of their norm."
    )


if __name__ == "__main__":
    side_by_side.main(
        __doc__,
        build,
        check,
        variants=["xxs"],
        batches=[16],
        settings=SETTINGS,
        notes=[
            "Forward, cross entropy, backward, fused AdamW. Ours: layers, gradient clipping and EMA of mobilevit "
            "train; as loaded: the model of from_pretrained(), as transformers' Trainer runs it. All but timm apply "
            "the configuration's dropout (0.05 in XXS, 0.1 in XS and S); timm's blocks have none, which favors timm. "
            "Segmentation: DeepLabv3 with output stride 16 and 21 classes, cross entropy at the size of the image. "
            "On one core: taskset -c 0 python benchmarks/training_step.py --threads 1"
        ],
    )
