"""Time classification of a batch of images: stock transformers, timm and ours, in float32 on the CPU."""

from typing import Any

import side_by_side
from side_by_side import Case, build_model, logits_of, random_images
from workers import OURS, Call


def build(candidate: str, case: Case) -> Call:
    """Return a forward pass; that of ours runs the fused copy of the model, as `mobilevit_hf.pipeline` does."""
    import torch

    model = build_model(candidate, case).eval()
    if candidate == OURS:
        from mobilevit_hf.modeling.fused_mobilevit import fold_batch_norm

        model = fold_batch_norm(model)
    images = random_images(candidate, case)

    @torch.inference_mode()
    def call() -> Any:
        return logits_of(model(images))

    return call


def check(case: Case) -> str:
    """Return the difference between the logits of stock and ours with the same weights."""
    import torch

    from mobilevit_hf.modeling.fused_mobilevit import fold_batch_norm

    torch.manual_seed(0)
    stock, ours = build_model("stock", case).eval(), build_model(OURS, case).eval()
    stock.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, case.size, case.size)
    with torch.inference_mode():
        expected, logits = stock(images).logits, fold_batch_norm(ours)(images).logits
    difference = (logits - expected).abs().max().item()
    return (
        f"{case.variant}: with the same weights, the logits of ours and stock differ by at most {difference:.1e}; "
        f"the largest logit is {expected.abs().max().item():.2g}."
    )


if __name__ == "__main__":
    side_by_side.main(
        __doc__,
        build,
        check,
        variants=["xxs", "s"],
        batches=[1, 8, 32],
        notes=[
            "Forward passes in inference mode. Ours: the fused copy that the commands and mobilevit_hf.pipeline() "
            "run; as loaded: the model of from_pretrained()."
        ],
    )
