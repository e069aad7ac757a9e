"""Top-k accuracy and per-class precision, recall and F1, as a metric module for `evaluate`.

`evaluate.load` copies this file out of the package, so it has no relative imports.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from mobilevit_hf.metrics import base
from mobilevit_hf.metrics.class_names import per_class_table

_DESCRIPTION = """\
Top-1 and top-k accuracy of a classifier, and precision, recall and F1 of each class for the top-1 predictions.
"""

_CITATION = """\
@article{russakovsky2015imagenet,
  title={{ImageNet} Large Scale Visual Recognition Challenge},
  author={Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and Ma, Sean and
          Huang, Zhiheng and Karpathy, Andrej and Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and
          Fei-Fei, Li},
  journal={International Journal of Computer Vision},
  year={2015}
}
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions: Scores (N, K) of K classes, such as logits or probabilities; or class indices (N,).
    references: Class indices (N,) from 0.
    k: One or several values of k; argument of `compute`. Default: (1, 5).
    id2label: Class names by index for `per_class`; argument of `compute`, optional. The index is appended to names
        that several classes share.

    Arrays, tensors on any device and lists are accepted. Ties are resolved in favor of the lower class index.

Returns:
    A dict of values in 0..1:
    `accuracy`: fraction of images whose target has the highest score.
    `top_{k}_accuracy`: fraction of images whose target is among the k highest scores, for each k above 1; scores
        only. 1 if there are at most k classes.
    `macro_f1`: mean of `f1` over the classes.
    `per_class`: for each class in references or predictions, by name, or by index without `id2label`, a dict of
        `precision`, `recall`, `f1` (0 without predictions or references) and `support` (number of references).

Raises:
    ValueError: If the numbers of predictions and references differ or are 0, a value is not a finite number, a
        reference is not one of the K classes, k is not positive, or a class has no name in `id2label`.
"""

UNKNOWN_RANK = -1  # rank of the target if the prediction is a class index


class TopKAccuracy(base.ConvertingMetric):
    """Top-k accuracy of a classifier; see `inputs_description` for arguments and results.

    The cache holds the top-1 class and the rank of the target of each image instead of its scores.
    """

    def _info(self) -> evaluate.MetricInfo:
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(predictions={"label": integer, "rank": integer}, references=integer),
        )

    def _convert(self, predictions: Any, references: Any) -> tuple[list[Any], list[Any]]:
        predictions, references = _to_array("predictions", predictions), _to_array("references", references)
        if predictions.ndim not in (1, 2) or references.shape != predictions.shape[:1]:
            raise ValueError(
                f"got predictions of shape {predictions.shape} and references of shape {references.shape}, expected "
                "(N, K) scores or (N,) class indices, and (N,) class indices."
            )
        references = _to_indices("references", references)
        if predictions.ndim == 1:
            labels = _to_indices("predictions", predictions)
            ranks = np.full_like(labels, UNKNOWN_RANK)
        else:
            labels, ranks = _rank(predictions, references)
        pairs = zip(labels.tolist(), ranks.tolist(), strict=True)
        return [{"label": label, "rank": rank} for label, rank in pairs], references.tolist()

    def _compute(  # ty: ignore[incompatible-method-override]  # evaluate passes the arguments of `compute` on by name
        self,
        *,
        predictions: Sequence[Mapping[str, int]],
        references: Sequence[int],
        k: int | Sequence[int] = (1, 5),
        id2label: Mapping[int, str] | None = None,
    ) -> dict[str, Any]:
        ks = np.atleast_1d(k).tolist()
        if any(number < 1 for number in ks):
            raise ValueError(f"k: got {k}, expected integers from 1.")
        if not len(references):
            raise ValueError("predictions: got none, expected at least one. Add predictions before compute().")
        labels, ranks = (np.array([p[name] for p in predictions]) for name in ("label", "rank"))
        hits = labels == np.array(references)
        classes, indices = np.unique([labels, references], return_inverse=True)
        indices = indices.reshape(2, -1)
        predicted, support, correct = (
            np.bincount(row, minlength=len(classes)) for row in (*indices, indices[0][hits])
        )
        columns = {
            "precision": correct / np.maximum(predicted, 1),
            "recall": correct / np.maximum(support, 1),
            "f1": 2 * correct / (predicted + support),
            "support": support,
        }
        top_k = {f"top_{number}_accuracy": float((ranks < number).mean()) for number in ks if number > 1}
        return {
            "accuracy": float(hits.mean()),
            **({} if UNKNOWN_RANK in ranks else top_k),
            "macro_f1": float(columns["f1"].mean()),
            "per_class": per_class_table(columns, classes.tolist(), id2label),
        }


def _rank(scores: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return top-1 classes (N,) and ranks of the targets (N,), from 0, for scores (N, K) and targets (N,)."""
    count = scores.shape[1]
    if (references >= count).any():
        raise ValueError(
            f"references: got class {references.max()}, expected 0..{count - 1} for scores of {count} classes."
        )
    target = np.take_along_axis(scores, references[:, None], axis=1)
    before = (scores > target) | ((scores == target) & (np.arange(count) < references[:, None]))
    return scores.argmax(axis=1), before.sum(axis=1)


def _to_indices(name: str, values: np.ndarray) -> np.ndarray:
    """Return non-negative integers as (N,) int64."""
    if (values != np.floor(values)).any() or (values < 0).any():
        raise ValueError(f"{name}: got {values[:10].tolist()}, expected class indices, integers from 0.")
    return values.astype(np.int64)


def _to_array(name: str, values: Any) -> np.ndarray:
    """Convert an array, a tensor or a list to an array of finite numbers."""
    values = [base.from_tensor(value) for value in values] if isinstance(values, list) else base.from_tensor(values)
    try:
        values = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: not an array of numbers: {error}") from error
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"{name}: got {values.dtype} values, expected numbers. Map class names to indices with "
            "config.label2id; evaluators of evaluate take it as label_mapping."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: got values that are not finite. Check the model and the annotations.")
    return values
