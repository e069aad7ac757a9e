"""transformers' pipelines on this package's models and backends."""

import copy
import os
from collections.abc import Callable, Iterator, Sized
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset
from transformers import MobileViTImageProcessor, Pipeline, PreTrainedModel, SegformerImageProcessor
from transformers.pipelines.base import no_collate_fn, pad_collate_fn
from transformers.pipelines.pt_utils import PipelineIterator

from .backends.formats import AUTO, BACKENDS, check_backend, dtype_name
from .backends.pytorch import HUB_ARGUMENTS, load_if_mobilevit, load_model
from .data.images import UnreadableImageError, is_url, load_image
from .data.segments import resize_to_labels, split_label_map
from .model_sources import (
    builtin_models,
    check_image_processor,
    checkpoint_errors,
    has_weights,
    load_image_processor,
    offline_if_unreachable,
    recommended_threshold,
    resolve_model,
)
from .modeling.finite import check_finite_outputs, check_finite_weights
from .modeling.fused_mobilevit import fold_batch_norm
from .modeling.image_processing_mobilevit_ssdlite import view_rgb
from .modeling.modeling_mobilevit import MobileViTPreTrainedModel
from .records import EXPORT_FILE, read_export_records
from .tasks import TASKS, TaskName
from .threads import map_ahead, num_workers, one_torch_thread

# Image processors whose `post_process_semantic_segmentation` resizes the logits and takes the argmax.
SEMANTIC_PROCESSORS = (MobileViTImageProcessor, SegformerImageProcessor)
# transformers declares overloads for literal task names only.
stock_pipeline: Callable[..., Pipeline] = transformers.pipeline


def pipeline(
    task: str,
    model: str | os.PathLike[str] | PreTrainedModel,
    *,
    backend: str = "torch",
    quantization: str | None = None,
    threads: int | None = None,
    compile: bool = False,
    **kwargs: Any,
) -> Pipeline:
    """`transformers.pipeline` with this package's models, optimized for inference.

    Args:
        task: "image-classification", "object-detection", "image-segmentation" or "image-feature-extraction" for
            MobileViT models; other tasks and models run as in transformers.
        model: Directory, built-in name, Hub id or model. A model object is copied, not modified.
        backend: "torch", or on the CPU "onnx", "openvino", "executorch" or "litert". On first use the model is
            exported, which takes up to a minute, and cached; a matching exported file next to the model is used
            directly.
        quantization: "int8" for an exported file that was quantized; see `export_model`.
        threads: Number of threads. Default: torch's number of threads. With "torch", it is set for the process.
        compile: With "torch", compile the model with inductor, which requires a C++ compiler. The first image, and the
            first batch of another size, take half a minute.
        kwargs: Arguments of `transformers.pipeline`: `device`, `dtype`, `revision`, `token`, `model_kwargs`, `top_k`,
            ... Exported models support `dtype` "float32" (default), "float16" with onnx, "bfloat16" with openvino, and
            "auto": a lower precision if it was checked for the model and the processor has instructions for it. The
            pipeline's `model.choice` gives the reason. With "torch", "auto" is the dtype of the checkpoint.

    Returns:
        transformers' pipeline, with the same calls and outputs, except that the default `threshold` of a detector is
        the one it recommends. Images of lists, datasets and generators are decoded and resized in threads while the
        model runs. Pipelines of exported models are thread-safe; with `batch_size=8`, each thread of ONNX Runtime and
        OpenVINO takes other images of a batch.

    Raises:
        KeyError, ValueError, OSError: As `transformers.pipeline`, for an unknown task or a missing model; if the
            backend is not installed or does not support the model, or the exported model differs from it; if
            weights or, when called, outputs are not finite, or an image can't be decoded.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: got {threads}, expected at least 1. Leave it out for torch's number of threads.")
    if backend == "torch" and quantization is not None:
        raise ValueError(f"quantization: got {quantization!r} for torch, expected None. Use openvino, onnx or litert.")
    if backend != "torch" and compile:
        raise ValueError(f"compile: got True for {backend}, expected False. It applies to the torch backend only.")
    if isinstance(model, PreTrainedModel):
        check_finite_weights(model, type(model).__name__)
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if isinstance(model, str) and model in builtin_models():
        model = str(resolve_model(model))
    if backend == "torch" and isinstance(model, str) and _has_only_exports(Path(model)):
        backends = dict.fromkeys(record.backend for record in read_export_records(Path(model, EXPORT_FILE)))
        raise ValueError(
            f"{model}: got exported models only ({', '.join(backends)}), expected weights. Pass the model that they "
            f'were exported from, or backend="{next(iter(backends), "onnx")}".'
        )
    with offline_if_unreachable(model if isinstance(model, str) else None):
        if backend != "torch":
            return _backend_pipeline(task, model, backend, quantization, threads, kwargs)
        if threads is not None:
            torch.set_num_threads(threads)
        pipe = _torch_pipeline(task, model, kwargs)
    if compile:
        pipe.model.compile()
    return pipe


def _torch_pipeline(task: str, model: str | PreTrainedModel, kwargs: dict[str, Any]) -> Pipeline:
    source = model if isinstance(model, str) else type(model).__name__
    if isinstance(model, str) and task in TASKS:
        mobilevit, kwargs = load_if_mobilevit(task, model, kwargs)
        if mobilevit:
            model = mobilevit
            kwargs["image_processor"] = _load_processor(kwargs["image_processor"], kwargs)
    fused = fold_batch_norm(model) if isinstance(model, MobileViTPreTrainedModel) else model
    with checkpoint_errors(source):
        pipe = _create_pipeline(task, model=fused, **kwargs)
    if fused == source:  # another architecture
        check_finite_weights(pipe.model, source)
        if pipe.image_processor:
            check_image_processor(pipe.image_processor, source)
    if pipe.task in TASKS:
        pipe._forward = partial(_checked_forward, pipe._forward, TASKS[pipe.task].outputs)
    return pipe


def _has_only_exports(folder: Path) -> bool:
    return (folder / EXPORT_FILE).is_file() and not has_weights(folder)


def _load_processor(processor: Any, kwargs: dict[str, Any]) -> Any:
    """Return an image processor that is given as such, or as a directory or Hub id."""
    if not isinstance(processor, str | os.PathLike):
        return processor
    return load_image_processor(os.fspath(processor), **{key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs})


def _checked_forward(forward: Callable[..., Any], names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
    """Run a pipeline's model and check that its outputs of these names are finite."""
    outputs = forward(*args, **kwargs)
    check_finite_outputs(outputs, names)
    return outputs


def _create_pipeline(task: str, **kwargs: Any) -> Pipeline:
    """Create transformers' pipeline, with images decoded as everywhere in this package, and ahead of the model."""
    pipe = stock_pipeline(task, **kwargs)
    if pipe.task == "object-detection":
        pipe._postprocess_params.setdefault("threshold", recommended_threshold(pipe.model.config))
    if pipe.task == "image-segmentation" and type(pipe.image_processor) in SEMANTIC_PROCESSORS:
        pipe.postprocess = partial(_postprocess_segments, pipe)  # ty: ignore[invalid-assignment]
    if pipe.task in TASKS:
        if type(pipe.image_processor) is MobileViTImageProcessor:
            pipe.image_processor = copy.copy(pipe.image_processor)
            pipe.image_processor.__class__ = _MobileViTImageProcessor
        pipe.preprocess = partial(_decode_and_preprocess, pipe.preprocess)  # ty: ignore[invalid-assignment]
        pipe.get_iterator = partial(_iterate_ahead, pipe, pipe.get_iterator)  # ty: ignore[invalid-assignment]
    if not isinstance(pipe.model, torch.nn.Module):
        pipe.run_single = partial(_run_in_one_torch_thread, pipe.run_single)
    return pipe


def _postprocess_segments(pipe: Pipeline, outputs: Any, subtask: str | None = None, **_: Any) -> list[dict[str, Any]]:
    """Return the same segments as `ImageSegmentationPipeline.postprocess`, in less time and memory.

    Args:
        pipe, outputs: The pipeline and the outputs of its `forward` for one image.
        subtask: Only "semantic" is supported by these image processors. Thresholds are for others.
    """
    if subtask not in (None, "semantic"):
        raise ValueError(f"subtask: got {subtask!r}, expected 'semantic'. Leave it out.")
    (size,) = outputs["target_size"]
    label_map = resize_to_labels(outputs["logits"][0], tuple(size))
    return split_label_map(label_map, cast("dict[int, str]", pipe.model.config.id2label))


class _MobileViTImageProcessor(MobileViTImageProcessor):
    """The image processor of classifiers, without a copy to contiguous memory, as in that of detectors."""

    def process_image(self, image: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        pixels = view_rgb(image, device)
        return super().process_image(image, *args, device=device, **kwargs) if pixels is None else pixels


_MobileViTImageProcessor.__name__ = MobileViTImageProcessor.__name__  # written by save_pretrained


def _run_in_one_torch_thread(function: Callable[..., Any], *args: Any) -> Any:
    with one_torch_thread():
        return function(*args)


class _ComputedAhead(IterableDataset):
    """A stage of a pipeline that runs in threads, ahead of the next stage."""

    def __init__(self, function: Callable[..., Any], inputs: Any, ahead: int, workers: int) -> None:
        self.function, self.inputs, self.ahead, self.workers = function, inputs, ahead, workers

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Any]:
        # A dataset need not be iterable, nor end where it is.
        is_sequence = isinstance(self.inputs, Sized) and hasattr(self.inputs, "__getitem__")
        inputs = map(self.inputs.__getitem__, range(len(self))) if is_sequence else self.inputs
        return map_ahead(self.function, inputs, self.ahead, self.workers)


class _OneTorchThreadIterator(PipelineIterator):
    """A pipeline's outputs, post-processed in the calling thread."""

    def __next__(self) -> Any:
        with one_torch_thread():
            return super().__next__()


def _iterate_ahead(
    pipe: Pipeline,
    get_iterator: Callable[..., Any],
    inputs: Any,
    processes: int,
    batch_size: int,
    *params: dict[str, Any],
) -> Any:
    """Iterate over a pipeline's outputs as `Pipeline.get_iterator`, with preprocessing in threads."""
    if processes > 0:
        return get_iterator(inputs, processes, batch_size, *params)
    preprocess_params, forward_params, postprocess_params = params
    preprocess, forward = partial(pipe.preprocess, **preprocess_params), partial(pipe.forward, **forward_params)
    inputs = _ComputedAhead(preprocess, inputs, batch_size + num_workers(), num_workers())
    collate = no_collate_fn if batch_size == 1 else pad_collate_fn(None, pipe.image_processor)
    loader = DataLoader(inputs, batch_size=batch_size, collate_fn=collate)
    if isinstance(pipe.model, torch.nn.Module):
        outputs = PipelineIterator(loader, forward, {}, loader_batch_size=batch_size)
        return PipelineIterator(outputs, pipe.postprocess, postprocess_params)
    # The runtime's threads run the next batch while the outputs of one are post-processed and used.
    batches = _ComputedAhead(forward, loader, ahead=2, workers=1)
    outputs = PipelineIterator(batches, lambda outputs: outputs, {}, loader_batch_size=batch_size)
    return _OneTorchThreadIterator(outputs, pipe.postprocess, postprocess_params)


class _UprightImage(Image.Image):
    """A decoded upright RGB image that is not copied: transformers would do so twice, 3 ms each for 12 MP."""

    def copy(self) -> Image.Image:
        return self

    def convert(self, mode: str | None = None, *args: Any, **kwargs: Any) -> Image.Image:
        return self if mode == self.mode else super().convert(mode, *args, **kwargs)


def _decode_and_preprocess(preprocess: Callable[..., Any], image: Any, *args: Any, **kwargs: Any) -> Any:
    """Decode an image, for whose damaged metadata transformers would fail, and run a pipeline's preprocessing.

    The image is one that transformers accepts, or the content of a file.
    """
    if isinstance(image, str):
        is_source = os.path.isfile(image) or (is_url(image) and "timeout" not in kwargs)  # noqa: PTH113, else base64
    else:
        is_source = isinstance(image, bytes | Image.Image)
    if is_source:
        try:
            upright = load_image(image)
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{image}: {error}" if isinstance(image, str) else str(error)) from error
        upright.__class__ = _UprightImage
        image = upright
    return preprocess(image, *args, **kwargs)


def _backend_pipeline(
    task: str,
    model: str | PreTrainedModel,
    backend: str,
    quantization: str | None,
    threads: int | None,
    kwargs: dict[str, Any],
) -> Pipeline:
    from .backends.loader import load_backend_model, load_exported_folder
    from .backends.runtime import check_device, processor_of_outputs

    dtype = dtype_name(kwargs.pop("dtype", None))
    if quantization and dtype == AUTO:
        dtype = "float32"
    check_backend(backend, task, dtype, quantization, exports=False)
    task = cast("TaskName", task)  # checked above
    check_device(kwargs.get("device"))
    kwargs = {"device": "cpu", **kwargs}
    options: dict[str, Any] = {"backend": backend, "dtype": dtype, "quantization": quantization, "threads": threads}
    source, hub_kwargs = None, {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    if isinstance(model, str):
        source = model
        if _has_only_exports(Path(source)):
            processor = _load_processor(kwargs.pop("image_processor", source), hub_kwargs)
            exported = load_exported_folder(Path(source), task, processor, **options)
            processor = processor_of_outputs(exported, processor)
            return _create_pipeline(task, model=exported, image_processor=processor, **kwargs)
        model, kwargs = load_model(task, source, kwargs)
    elif not isinstance(model, TASKS[task].model_class):
        expected = TASKS[task].architecture
        raise ValueError(f"model: got {type(model).__name__}, expected {expected} for {task}. Use the torch backend.")
    processor = kwargs.pop("image_processor", None)
    if processor is None:
        raise ValueError("image_processor: got None, expected it or its directory. Pass it along with a model object.")
    processor = _load_processor(processor, hub_kwargs)
    exported = load_backend_model(model, task, processor, source=source, hub_kwargs=hub_kwargs, **options)
    processor = processor_of_outputs(exported, processor)
    return _create_pipeline(task, model=exported, image_processor=processor, **kwargs)
