"""Time detection from JPEG files to boxes on every engine: ultralytics' YOLO11n and ours, on the CPU.

Next to each pipeline stands its network alone: the same exported file, run by the engine's own API on random pixels.
"""

import dataclasses
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import side_by_side
from backends import call_openvino
from detection import calibrate, find_threshold, make_photos, mean_count
from side_by_side import Case
from workers import OURS, Call, Candidate, yolo_environment

YOLO, NETWORK = "YOLO11n", ", network"
MODEL, VARIANT, NUM_CLASSES = "blood-cells", "xxs", 3
BOXES = 20  # approximate number of detections per photo, that of ours at its recommended threshold
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
    """Return backend and dtype; the dtype is None for the package's default."""
    backend, _, dtype = setting.partition(", ")
    return backend, None if dtype in ("", "default") else dtype


def write_photos(folder: Path, count: int) -> list[str]:
    """Write JPEG files of 640x480 pixels, drawn blood smears, and return their paths."""
    from mobilevit_hf.samples import draw_smear

    paths = [str(folder / f"{number}.jpg") for number in range(count)]
    for seed, path in enumerate(paths):
        draw_smear(seed).save(path, quality=90)
    return paths


# --- ours ------------------------------------------------------------------------------------------------------------


def load_ours(case: Case) -> Any:
    """Return the pipeline of the built-in detector in the case's setting; the default is mobilevit predict's."""
    import mobilevit_hf

    backend, dtype = parse_setting(case.setting)
    options = {"dtype": dtype or "auto"} if backend == "openvino" else {}
    pipe = mobilevit_hf.pipeline("object-detection", mobilevit_hf.builtin(MODEL), backend=backend, **options)
    pipe.image_processor.size = {"height": case.size, "width": case.size}
    return pipe


def build_ours(case: Case, paths: list[str], *, network: bool) -> Call:
    """Return a call of `mobilevit_hf.pipeline` on all photos, or of its network."""
    import torch

    pipe = load_ours(case)
    if not network:
        files = paths if case.batch > 1 else paths[0]
        return partial(pipe, files, batch_size=case.batch)
    backend, dtype = parse_setting(case.setting)
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
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import torch_utils

    threads = torch.get_num_threads()  # before ultralytics sets its own, one less than cores
    if case.threads:
        torch_utils.NUM_THREADS = case.threads  # what it passes to torch.set_num_threads
    backend, dtype = parse_setting(case.setting)
    model = Model("yolo11n.yaml", verbose=False)
    model.model = DetectionModel("yolo11n.yaml", nc=NUM_CLASSES, verbose=False)
    pixels = torch.rand(case.batch, 3, case.size, case.size)
    calibrate(model.model, partial(model.model, _photo_pixels(case.size)))
    file = str(folder / "yolo11n.pt")
    model.save(file)
    if backend != "torch":
        file = Model(file).export(format=backend, imgsz=case.size, batch=case.batch, device="cpu", verbose=False)
    model = Model(file, task="detect", verbose=False)
    if network:
        torch.set_num_threads(threads)
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
    if case.variant != VARIANT:
        sys.exit(f"--variants: got {case.variant}, expected {VARIANT}, that of the built-in detector.")
    with tempfile.TemporaryDirectory() as folder:
        photos = load_ours(dataclasses.replace(case, setting="torch"))(write_photos(Path(folder), 8), batch_size=8)
    return f"Ours returns {statistics.mean(map(len, photos)):.0f} boxes per photo."


def main() -> None:
    """Run the command line, with ultralytics' settings in a temporary folder instead of the home folder."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(yolo_environment(folder))
        side_by_side.main(
            __doc__.partition("\n")[0],
            build,
            check,
            variants=[VARIANT],
            batches=[1, 8],
            size=320,
            settings={setting: candidates_of(setting) for setting in ENGINES},
            notes=[
                f"A call runs a batch of JPEG files of 640x480 pixels. Ours: the built-in {MODEL}, {VARIANT}. {YOLO}: "
                f"random weights, {NUM_CLASSES} classes, and a threshold that keeps about {BOXES} boxes per photo; it "
                "is exported for the batch size, reads a folder of the photos, and pads them to a square, in torch "
                "only to 320x256, a fifth fewer pixels than in its network alone.",
                "openvino, default: the precision that the package chooses on this processor.",
                "network: the exported file on random pixels, run by the engine's own API.",
            ],
        )


if __name__ == "__main__":
    main()
