"""Time detection from JPEG files to boxes on every engine: ultralytics' YOLO11n and ours, on the CPU.

Next to each pipeline stands its network alone: the same exported file, run by the engine's own API on random pixels.
"""

import dataclasses
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import side_by_side
from backends import call_openvino
from detection import calibrate, find_threshold, make_photos, mean_count
from pipelines import BOXES, build_detector, write_photos
from side_by_side import Case
from workers import OURS, Call, Candidate, yolo_environment

YOLO, NETWORK = "YOLO11n", ", network"
# Setting: package of the engine.
ENGINES = {
    "torch": "torch",
    "onnx": "onnxruntime",
    "openvino, default": "openvino",
    "openvino, float32": "openvino",
    "openvino, bfloat16": "openvino",
}
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # names of OpenVINO


def candidates_of(setting: str) -> dict[str, Candidate]:
    """Return the candidates of a setting; networks are compared at equal precision only."""
    yolo, ours = Candidate("ultralytics", "ultralytics"), Candidate(ENGINES[setting], "mobilevit_hf.pipelines")
    networks = {} if setting.endswith("default") else {YOLO + NETWORK: yolo, OURS + NETWORK: ours}
    return {YOLO: yolo, **networks, OURS: ours}


def parse_setting(setting: str) -> tuple[str, str | None]:
    """Return backend and dtype, None for the package's default."""
    backend, _, dtype = setting.partition(", ")
    return backend, None if dtype in ("", "default") else dtype


# --- ours ------------------------------------------------------------------------------------------------------------


def build_ours(case: Case, paths: list[str], *, network: bool) -> Call:
    """Return a call of `mobilevit_hf.pipeline` on all photos, or of its network."""
    import torch

    import mobilevit_hf

    backend, dtype = parse_setting(case.setting)
    model, processor, threshold = build_detector(case, paths, case.size)
    options = {"dtype": dtype} if dtype else {}
    pipe = mobilevit_hf.pipeline("object-detection", model, image_processor=processor, backend=backend, **options)
    if not network:
        files = paths if case.batch > 1 else paths[0]
        return lambda: pipe(files, batch_size=case.batch, threshold=threshold)
    pixels = torch.rand(case.batch, 3, case.size, case.size)
    if backend == "torch":
        return torch.inference_mode()(partial(pipe.model, pixels))
    runtime = pipe.model.runtime
    if backend == "onnx":
        return partial(runtime.session.run, None, {runtime.input: pixels.numpy()})
    return call_openvino(runtime.model, pixels.numpy(), PRECISIONS[dtype])


# --- ultralytics -----------------------------------------------------------------------------------------------------


def use_precision(dtype: str) -> None:
    """Let ultralytics compile OpenVINO models in this precision, for which it has no option."""
    import openvino

    class Core(openvino.Core):
        def compile_model(self, *args: Any, config: dict[str, Any], **kwargs: Any) -> Any:
            options = config | {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype]}
            return super().compile_model(*args, config=options, **kwargs)

    openvino.Core = Core


def build_yolo(case: Case, folder: Path, *, network: bool) -> Call:
    """Return a call of `YOLO.predict` on the folder's photos, or of its network, with random weights."""
    import torch
    from ultralytics import YOLO as Model
    from ultralytics.utils import torch_utils

    if case.threads:
        torch_utils.NUM_THREADS = case.threads  # what it passes to torch.set_num_threads
    backend, dtype = parse_setting(case.setting)
    model = Model("yolo11n.yaml", verbose=False)
    pixels = torch.rand(case.batch, 3, case.size, case.size)
    calibrate(model.model, partial(model.model, _photo_pixels(case.size)))
    file = str(folder / "yolo11n.pt")
    model.save(file)
    if backend != "torch":
        file = Model(file).export(format=backend, imgsz=case.size, batch=case.batch, device="cpu", verbose=False)
    model = Model(file, task="detect", verbose=False)
    if network:
        return _yolo_network(model, file, case, pixels)
    if dtype:
        use_precision(dtype)
    photos = folder / "photos"
    source = str(photos) if case.batch > 1 else str(next(photos.iterdir()))
    options = {"imgsz": case.size, "batch": case.batch, "device": "cpu", "verbose": False}
    threshold = find_threshold(
        lambda score: mean_count([{"boxes": found.boxes} for found in model.predict(source, conf=score, **options)]),
        BOXES,
        low=0.0,
    )
    return lambda: model.predict(source, conf=threshold, **options)


def _photo_pixels(size: int) -> Any:
    import torch
    from torchvision.transforms.functional import pil_to_tensor, resize

    return torch.stack([resize(pil_to_tensor(photo) / 255, [size, size]) for photo in make_photos(4)])


def _yolo_network(model: Any, file: str, case: Case, pixels: Any) -> Call:
    import torch

    backend, dtype = parse_setting(case.setting)
    if backend == "torch":
        return torch.inference_mode()(partial(model.model.eval().fuse(), pixels))
    if backend == "openvino":
        import openvino

        (program,) = Path(file).glob("*.xml")
        return call_openvino(openvino.Core().read_model(program), pixels.numpy(), PRECISIONS[dtype])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: pixels.numpy()})


def build(candidate: str, case: Case) -> Call:
    """Return a call from JPEG files to boxes, or of a network alone."""
    if case.threads and hasattr(os, "sched_setaffinity"):  # ultralytics has no option for an engine's threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.threads])
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    (folder / "photos").mkdir()
    paths = write_photos(folder / "photos", case.batch)
    network = candidate.endswith(NETWORK)
    if candidate.startswith(YOLO):
        run = build_yolo(case, folder, network=network)
    else:
        run = build_ours(case, paths, network=network)

    def call(temporary: Any = temporary) -> Any:  # keeps the temporary folder alive
        return run()

    return call


def check(case: Case) -> str:
    """Return the number of boxes that ours finds."""
    import torch

    import mobilevit_hf

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), 8)
        model, processor, threshold = build_detector(dataclasses.replace(case, batch=8), paths, case.size)
        pipe = mobilevit_hf.pipeline("object-detection", model, image_processor=processor)
        boxes = statistics.mean(len(found) for found in pipe(paths, threshold=threshold))
    return f"{case.variant}: ours returns {boxes:.0f} boxes per photo."


def main() -> None:
    """Run the command line, with ultralytics' settings in a temporary folder instead of the home folder."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(yolo_environment(folder))
        side_by_side.main(
            __doc__.partition("\n")[0],
            build,
            check,
            variants=["xxs"],
            batches=[1, 8],
            size=320,
            settings={setting: candidates_of(setting) for setting in ENGINES},
            notes=[
                f"A call runs a batch of JPEG files of 400x533 pixels, with random weights and about {BOXES} boxes "
                f"per photo. {YOLO} is exported for the batch size and reads a folder of the photos, which it pads to "
                "a square; in torch only to 320x256, a fifth fewer pixels than in its network alone.",
                "openvino, default: the precision that the package chooses on this processor.",
                "network: the exported file on random pixels, run by the engine's own API.",
            ],
        )


if __name__ == "__main__":
    main()
