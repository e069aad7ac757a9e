"""Time exported classifiers: ours, the runtime's own API, and torch.onnx exports of timm and stock models."""

import tempfile
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import Case, build_model, logits_of
from workers import OURS, Call, Candidate

OPENVINO, ONNX = Candidate("openvino", "openvino"), Candidate("onnxruntime", "onnxruntime")
CANDIDATES = {
    "stock": OPENVINO,
    "timm": OPENVINO,
    "runtime API, onnx": ONNX,
    f"{OURS}, onnx": ONNX,
    "runtime API, bfloat16": OPENVINO,
    f"{OURS}, bfloat16": OPENVINO,
    "runtime API": OPENVINO,
    OURS: OPENVINO,
}


def load_ours(candidate: str, case: Case) -> Any:
    """Return our model on the candidate's backend, as loaded by `mobilevit_hf.pipeline(..., backend=...)`."""
    from transformers import MobileViTImageProcessor

    from mobilevit_hf.backends.loader import load_backend_model

    _, _, setting = candidate.partition(", ")
    backend = "onnx" if setting == "onnx" else "openvino"
    dtype = "bfloat16" if setting == "bfloat16" else "float32"
    sides = {"height": case.size, "width": case.size}
    processor = MobileViTImageProcessor(size={"shortest_edge": case.size}, crop_size=sides)
    model = build_model(OURS, case).eval()
    return load_backend_model(
        model, "image-classification", processor, backend=backend, dtype=dtype, threads=case.threads
    )


def call_openvino(model: Any, images: Any, precision: str) -> Call:
    """Return an inference request of an OpenVINO model that is compiled for the shape of the images."""
    import openvino
    import torch

    model = model.clone()
    model.reshape(list(images.shape))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def call() -> Any:
        request.infer([images])
        return request.get_output_tensor(0).data

    return call


def export_other(candidate: str, case: Case, images: Any) -> Any:
    """Export stock's or timm's model with torch.onnx for the shape of the images."""
    import openvino
    import torch

    name = "timm contiguous" if candidate == "timm" else candidate
    model = build_model(name, case).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return logits_of(self.model(pixel_values))

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        torch.onnx.export(Logits().eval(), (images,), dynamo=True, external_data=False, verbose=False).save(file)
        return openvino.convert_model(file)


def build(candidate: str, case: Case) -> Call:
    """Return a call from a tensor of images to logits."""
    import torch

    images = torch.rand(case.batch, 3, case.size, case.size)
    if candidate in ("stock", "timm"):
        return call_openvino(export_other(candidate, case, images), images.numpy(), "f32")
    model = load_ours(candidate, case)
    if candidate.startswith(OURS):
        return lambda: model(pixel_values=images).logits
    if candidate.endswith("onnx"):
        session, name, array = model.runtime.session, model.runtime.input, images.numpy()
        return lambda: session.run(None, {name: array})
    return call_openvino(model.runtime.model, images.numpy(), "bf16" if candidate.endswith("bfloat16") else "f32")


def check(case: Case) -> str:
    """Return the difference between the logits of the exported model and its torch model."""
    import torch

    torch.manual_seed(0)
    model = build_model(OURS, case).eval()
    torch.manual_seed(0)
    exported = load_ours(OURS, case)
    images = torch.rand(2, 3, case.size, case.size)
    with torch.inference_mode():
        difference = (model(images).logits - exported(pixel_values=images).logits).abs().max().item()
    return f"{case.variant}: the logits of ours and its torch model differ by at most {difference:.1e}."


if __name__ == "__main__":
    side_by_side.main(
        __doc__,
        build,
        check,
        variants=["xxs", "s"],
        batches=[1, 8],
        candidates=CANDIDATES,
        notes=[
            "OpenVINO in float32 unless stated otherwise. runtime API: the file of ours, compiled for this shape. "
            "stock, timm: models exported by torch.onnx.export for this shape, run with OpenVINO's API.",
        ],
    )
