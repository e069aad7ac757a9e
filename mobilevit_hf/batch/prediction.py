"""Predict a stream of images, of which some can't be read."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
from PIL import Image
from torch import nn
from transformers import Pipeline

from ..data.images import UnreadableImageError
from ..data.segments import sort_segments
from ..modeling.finite import NonFiniteOutputError
from ..modeling.layers_mobilevit import MobileViTEncoder
from ..modeling.modeling_mobilevit import MobileViTModel, MobileViTPreTrainedModel
from ..threads import map_ahead, num_workers

Item = TypeVar("Item")
Kept = TypeVar("Kept")

# Keeps two cores busy; decoded photos stay below half a gigabyte.
BATCH_SIZE = 8


@dataclass(frozen=True)
class Prediction(Generic[Item, Kept]):
    """Predictions for an item of a stream.

    Attributes:
        item: The item.
        loaded: What the function that loads images returned next to the image, or the error it raised.
        predictions: Output of the pipeline by descending score, or in segmentation by size; empty after an error.
        embedding: (C,) float32 pooled output of the encoder, if requested.
    """

    item: Item
    loaded: Kept | UnreadableImageError
    predictions: list[dict[str, Any]]
    embedding: np.ndarray | None = None


def predict_images(
    predictor: Pipeline,
    items: Iterable[Item],
    load: Callable[[Item], tuple[Image.Image, Kept]],
    arguments: Mapping[str, Any],
    *,
    pad: bool,
    batch_size: int | None = None,
    embeddings: bool = False,
) -> Iterator[Prediction[Item, Kept]]:
    """Yield the predictions for each item, in order.

    Args:
        predictor: Pipeline of this package.
        items: What `load` takes; drawn a few ahead of the model.
        load: Returns the image of an item, and anything else to keep of it. Runs in threads.
        arguments: Of the pipeline's call.
        pad: Fill the last batch with copies of its last image. On a CPU, torch's kernels depend on the size of the
            batch, and so do the last digits of scores; with equal sizes, they depend on nothing but the image.
        batch_size: Number of images per batch. Default: `BATCH_SIZE`.
        embeddings: Also return the pooled output of the encoder; MobileViT on torch only.

    Raises:
        ValueError: If outputs are not finite.
    """
    drawn: deque[tuple[Item, Kept | UnreadableImageError]] = deque()
    # Other detectors may resize each image to another size, which can't be batched. An exported model is no module,
    # and takes the images of a batch one by one.
    is_module = isinstance(predictor.model, nn.Module)
    is_other = is_module and not isinstance(predictor.model, MobileViTPreTrainedModel)
    size, pad = (1, False) if is_other else (batch_size or BATCH_SIZE, pad and is_module)

    def load_or_error(item: Item) -> tuple[Image.Image, Kept] | UnreadableImageError:
        try:
            return load(item)
        except UnreadableImageError as error:
            return error

    def readable_images() -> Iterator[Image.Image]:
        count, image = 0, None
        for item, loaded in _map_ahead_with_items(load_or_error, items):
            if isinstance(loaded, UnreadableImageError):
                drawn.append((item, loaded))
                continue
            image, kept = loaded
            drawn.append((item, kept))
            count += 1
            yield image
        if pad and image is not None:
            yield from (image.copy() for _ in range(-count % size))

    sort = sort_segments if predictor.task == "image-segmentation" else _sort_by_score
    try:
        with _pooled_outputs(predictor.model, enable=embeddings) as pooled:
            for predictions in predictor(readable_images(), batch_size=size, **arguments):
                embedding = pooled.popleft() if embeddings else None
                while drawn and isinstance(drawn[0][1], UnreadableImageError):
                    yield Prediction(*drawn.popleft(), [])
                if drawn:  # not a copy that fills the batch
                    yield Prediction(*drawn.popleft(), sort(predictions), embedding)
    except NonFiniteOutputError as error:
        batch = [item for item, loaded in drawn.copy() if not isinstance(loaded, UnreadableImageError)]
        raise ValueError(f"{batch[min(error.index, len(batch) - 1)]}: {error.reason}") from error
    yield from (Prediction(item, loaded, []) for item, loaded in drawn)


def check_embeddings(predictor: Pipeline) -> None:
    """Check that a pipeline's model has an encoder whose output can be returned.

    Raises:
        ValueError: If it has none.
    """
    if not isinstance(predictor.model, MobileViTPreTrainedModel):
        name = type(predictor.model).__name__
        raise ValueError(f"embeddings: got {name}, expected a MobileViT on the torch backend. Leave it out.")


def _map_ahead_with_items(function: Callable[[Item], Kept], items: Iterable[Item]) -> Generator[tuple[Item, Kept]]:
    return map_ahead(lambda item: (item, function(item)), items, num_workers())


@contextmanager
def _pooled_outputs(model: Any, *, enable: bool) -> Generator[deque[np.ndarray]]:
    """Collect the pooled output of the encoder, (C,) float32 for each image, in the order of the model's calls.

    That of a classifier is the input of its last layer. Detectors and segmentation models have no pooling; it is the
    mean of the encoder's last feature map over all positions.
    """
    rows: deque[np.ndarray] = deque()

    def collect(module: nn.Module, inputs: Any, output: Any) -> None:
        pooled = getattr(output, "pooler_output", None)
        pooled = output.last_hidden_state.mean(dim=(-2, -1)) if pooled is None else pooled
        rows.extend(pooled.float().numpy(force=True))

    if not enable:
        yield rows
        return
    modules = list(cast("nn.Module", model).modules())
    models = [module for module in modules if isinstance(module, MobileViTModel) and module.expand_output]
    encoder = next(iter(models), None) or next(module for module in modules if isinstance(module, MobileViTEncoder))
    handle = encoder.register_forward_hook(collect)
    try:
        yield rows
    finally:
        handle.remove()


def _sort_by_score(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(predictions, key=lambda prediction: -prediction["score"])
