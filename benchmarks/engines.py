"""Images in, logits out on other engines: ours, the engine driven by hand, and timm's and stock's own exports."""

import tempfile
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import OURS, Call, Candidate, Case, build_model, logits_of

OPENVINO, ONNX = Candidate("openvino", "openvino"), Candidate("onnxruntime", "onnxruntime")
CANDIDATES = {
    "stock": OPENVINO,
    "timm": OPENVINO,
    "by hand, onnx": ONNX,
    f"{OURS}, onnx": ONNX,
    "by hand, bfloat16": OPENVINO,
    f"{OURS}, bfloat16": OPENVINO,
    "by hand": OPENVINO,
    OURS: OPENVINO,
}


def open_ours(candidate: str, case: Case) -> Any:
    """Our model on the engine that a candidate names, as `mobilevit_hf.pipeline(..., backend=...)` opens it."""
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


def drive(program: Any, images: Any, precision: str) -> Call:
    """An OpenVINO model compiled for these images, and asked without anything around it."""
    import openvino
    import torch

    program = program.clone()
    program.reshape(list(images.shape))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = openvino.Core().compile_model(program, "CPU", options).create_infer_request()

    def call() -> Any:
        request.infer([images])
        return request.get_output_tensor(0).data

    return call


def export_peer(candidate: str, case: Case, images: Any) -> Any:
    """Stock's or timm's model by torch's exporter, for images of this very size."""
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
    """From a tensor of images to the logits."""
    import torch

    images = torch.rand(case.batch, 3, case.size, case.size)
    if candidate in ("stock", "timm"):
        return drive(export_peer(candidate, case, images), images.numpy(), "f32")
    model = open_ours(candidate, case)
    if candidate.startswith(OURS):
        return lambda: model(pixel_values=images).logits
    if candidate.endswith("onnx"):
        session, name, array = model.runtime.session, model.runtime.input, images.numpy()
        return lambda: session.run(None, {name: array})
    return drive(model.runtime.model, images.numpy(), "bf16" if candidate.endswith("bfloat16") else "f32")


def check(case: Case) -> str:
    """How far the timed program and the model it was made from are apart."""
    import torch

    torch.manual_seed(0)
    model, program = build_model(OURS, case).eval(), None
    torch.manual_seed(0)
    program = open_ours(OURS, case)
    images = torch.rand(2, 3, case.size, case.size)
    with torch.inference_mode():
        difference = (model(images).logits - program(pixel_values=images).logits).abs().max().item()
    return f"{case.variant}: the logits of ours and of the model differ by at most {difference:.1e}."


if __name__ == "__main__":
    side_by_side.main(
        __doc__,
        build,
        check,
        variants=["xxs", "s"],
        batches=[1, 8],
        candidates=CANDIDATES,
        notes=[
            "OpenVINO in float32, unless another is named. By hand: the file that ours runs, compiled for images of "
            "this size. stock, timm: their models by torch.onnx.export for this size, also driven by hand.",
        ],
    )
