"""Run a program on its engine, as a model that transformers' pipelines take."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput
from transformers.utils import ModelOutput

from ..modeling.modeling_mobilevit import MobileViTPreTrainedModel
from ..modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteObjectDetectionOutput
from .export import OPENVINO_PRECISION, program_bytes
from .formats import OUTPUTS

OUTPUT_CLASSES: dict[str, type[ModelOutput]] = {
    "image-classification": ImageClassifierOutput,
    "object-detection": MobileViTSSDLiteObjectDetectionOutput,
    "image-segmentation": SemanticSegmenterOutput,
}

# A pipeline asks for a model's class by its name.
ARCHITECTURES = {
    "image-classification": "MobileViTForImageClassification",
    "object-detection": "MobileViTSSDLiteForObjectDetection",
    "image-segmentation": "MobileViTForSemanticSegmentation",
}

# OpenVINO is a tenth faster on a program made for one size of batch; so many sizes get one, any others share one.
MAX_SIZES = 4


class OnnxEngine:
    """ONNX Runtime on the CPU. Several threads may call it at once."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The outputs for (B, 3, H, W) float32, arrays of their own."""
        return self.session.run(None, {self.input: pixels})


class OpenVINOEngine:
    """OpenVINO on the CPU, in the precision that the file was exported for. Several threads may call it at once."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        self.openvino, self.core = openvino, openvino.Core()
        self.model = self.core.read_model(path)
        self.options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            OPENVINO_PRECISION[-1]: self.model.get_rt_info(OPENVINO_PRECISION).astype(str),
        }
        # By size, None for any.
        self.programs: dict[tuple[int, ...] | None, Any] = {}
        self.lock, self.of_thread = threading.Lock(), threading.local()

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The outputs for (B, 3, H, W) float32, arrays of their own."""
        request = self._request(pixels.shape)
        request.set_input_tensor(self.openvino.Tensor(pixels, shared_memory=True))
        request.infer()
        # What the next call writes over is copied.
        return [request.get_output_tensor(i).data.copy() for i in range(len(self.model.outputs))]

    def _request(self, shape: tuple[int, ...]) -> Any:
        """This thread's own request to the program for a size."""
        with self.lock:
            size = shape if shape in self.programs or len(self.programs) < MAX_SIZES else None
            if size not in self.programs:
                self.programs[size] = self._compile(size)
        requests = self.of_thread.__dict__
        if size not in requests:
            requests[size] = self.programs[size].create_infer_request()
        return requests[size]

    def _compile(self, size: tuple[int, ...] | None) -> Any:
        model = self.model.clone()
        if size:
            model.reshape(list(size))
            _drop_idle_resizes(model)
        return self.core.compile_model(model, "CPU", self.options)


def _drop_idle_resizes(model: Any) -> None:
    """Take out the resizes that, for images of this size, change nothing."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate":
            source, result = node.input(0), node.output(0)
            if source.get_partial_shape() == result.get_partial_shape():
                result.replace(source.get_source_output())


class ExecuTorchEngine:
    """ExecuTorch's XNNPACK on the CPU: images of the exported size, one after the other. It has its own threads."""

    def __init__(self, path: Path, threads: int) -> None:
        from executorch.runtime import Runtime

        self.program = Runtime.get().load_program(path)
        self.method = self.program.load_method("forward")
        self.shape = tuple(self.method.metadata.input_tensor_meta(0).sizes())
        self.lock = threading.Lock()

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The outputs for (B, 3, H, W) float32, arrays of their own."""
        if pixels.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"pixel_values: got images of {pixels.shape[2]}x{pixels.shape[3]} pixels, expected "
                f"{self.shape[2]}x{self.shape[3]}, for which the ExecuTorch program was exported. Resize them, or use "
                "openvino or onnx, which take any size."
            )
        with self.lock:  # the next run writes over what this one returns
            answers = [[t.numpy().copy() for t in self.method.execute([torch.from_numpy(p[None])])] for p in pixels]
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


ENGINES = {"onnx": OnnxEngine, "openvino": OpenVINOEngine, "executorch": ExecuTorchEngine}


def check_device(device: Any) -> None:
    """Refuse any device but the CPU; -1 is transformers' number for it.

    Raises:
        ValueError: For any other.
    """
    if device not in (None, -1) and torch.device(device).type != "cpu":
        raise ValueError(f"device: got {device}, expected cpu, where engines run. Use backend='torch' there.")


class EngineModel:
    """A program on its engine, called like the model it was made from.

    It takes and returns float32 tensors on the CPU, whatever the engine computes in.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, config: PreTrainedConfig, task: str, engine: Any, file_bytes: int) -> None:
        self.config, self.engine, self.file_bytes = config, engine, file_bytes
        self.names, self.output_class = OUTPUTS[task], OUTPUT_CLASSES[task]
        self._input = _Input(getattr(config, "backbone_config", config))

    def __call__(self, pixel_values: Tensor | None = None, **kwargs: Any) -> ModelOutput:
        """The task's output for (B, 3, H, W) images.

        Raises:
            ValueError: If they don't fit the model, or more is asked for than the program returns.
        """
        if wanted := [name for name, value in kwargs.items() if value not in (None, False)]:
            raise ValueError(f"{wanted[0]}: an exported model returns {', '.join(self.names)}. Use backend='torch'.")
        pixels = MobileViTPreTrainedModel._prepare_pixels(self._input, pixel_values)
        arrays = self.engine(pixels.numpy())
        return self.output_class(**dict(zip(self.names, map(torch.from_numpy, arrays), strict=True)))

    def __deepcopy__(self, memo: dict[int, Any]) -> "EngineModel":
        """Itself: who measures a model copies it first, and this one never changes."""
        return self

    def to(self, device: Any = None, **kwargs: Any) -> "EngineModel":
        """Itself: engines run on the CPU.

        Raises:
            ValueError: For any other device.
        """
        check_device(device)
        return self

    def eval(self) -> "EngineModel":
        """Itself, which never trains."""
        return self

    def can_generate(self) -> bool:
        """No."""
        return False

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to save but the file it was read from."""
        raise ValueError("save_pretrained: got an exported model. Save the model it was made from.")


class _Input:
    """What a model checks its input by."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config

    def _to_weights(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.detach().to("cpu", torch.float32).contiguous()


def load_program(path: Path, config: PreTrainedConfig, task: str, backend: str, threads: int | None) -> EngineModel:
    """A program as a model.

    Args:
        path: A file of `exporting.export_program`.
        config: The configuration of the model it was made from.
        task: A key of `formats.OUTPUTS`.
        backend: One of `ENGINES`.
        threads: How many to use; torch's number, which follows the machine, if not given.

    Raises:
        ValueError: If the engine can't read the file.
    """
    try:
        engine = ENGINES[backend](path, threads or torch.get_num_threads())
    except Exception as error:  # each engine has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: {backend} can't read it ({reason}). Remove it, and export the model again."
        ) from error
    named = type(ARCHITECTURES[task], (EngineModel,), {})
    return named(config, task, engine, program_bytes(path))
