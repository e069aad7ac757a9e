"""Time a training step of classification: stock transformers, timm and ours, in float32 on the CPU."""

import side_by_side
from side_by_side import NUM_CLASSES, Case, build_model, logits_of, random_images
from workers import OURS, Call


def build(candidate: str, case: Case) -> Call:
    """Return a training step: forward pass, cross entropy, backward pass, AdamW step.

    Ours is that of `mobilevit train`, which also clips the gradient norm and averages the weights.
    """
    import torch
    from torch.nn import functional as F

    model, ema = build_model(candidate, case).train(), None
    if candidate == OURS:
        from mobilevit_hf.modeling.layers_cpu import use_fast_layers
        from mobilevit_hf.training.ema import EMA

        use_fast_layers(model)
        ema = EMA(model, decay=0.998)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = random_images(candidate, case)
    labels = torch.randint(NUM_CLASSES, (case.batch,))

    def call() -> None:
        optimizer.zero_grad()
        F.cross_entropy(logits_of(model(images)), labels, label_smoothing=0.1).backward()
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
    from torch.nn import functional as F

    torch.manual_seed(0)
    no_dropout = {"hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0}
    case = dataclasses.replace(case, fields=case.fields | no_dropout)
    stock, ours = build_model("stock", case).train(), build_model(OURS, case).train()
    stock.load_state_dict(ours.state_dict())
    images, labels = torch.rand(4, 3, case.size, case.size), torch.randint(NUM_CLASSES, (4,))
    for model in (stock, ours):
        F.cross_entropy(model(images).logits, labels).backward()
    expected = torch.cat([weight.grad.flatten() for weight in stock.parameters()])
    gradient = torch.cat([weight.grad.flatten() for weight in ours.parameters()])
    difference = ((gradient - expected).norm() / expected.norm()).item()
    return (
        f"{case.variant}: with the same weights and no dropout, the gradients of ours and stock differ by "
        f"{difference:.1e} of their norm."
    )


if __name__ == "__main__":
    side_by_side.main(
        __doc__,
        build,
        check,
        variants=["xxs"],
        batches=[16],
        notes=[
            "Forward, cross entropy, backward, fused AdamW. Ours: layers, gradient clipping and EMA of mobilevit "
            "train; as loaded: the model of from_pretrained(), as transformers' Trainer runs it. All but timm apply "
            "the configuration's dropout (0.05 in XXS, 0.1 in XS and S); timm's blocks have none, which favors timm. "
            "On one core: taskset -c 0 python benchmarks/training_step.py --threads 1 --size 160"
        ],
    )
