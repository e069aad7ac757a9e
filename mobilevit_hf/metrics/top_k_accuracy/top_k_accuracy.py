"""Accuracy of a classifier, overall and by class, as a module for `evaluate`.

This file stands alone: `evaluate.load` copies it out of the package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from mobilevit_hf.metrics.class_names import class_names

_DESCRIPTION = """\
How often the right class is the first, or among the first k, of those a classifier names; and precision, recall and
F1 of each class by the first one named.
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
    predictions: Scores (N, K) of K classes, such as logits or probabilities, higher is surer; or class indices (N,).
    references: Class indices (N,) from 0.
    k: At `compute` only: how many of the first classes count, one number or several. Default: (1, 5).
    id2label: At `compute` only, optional: names of the classes by index, for `per_class`. Where classes share a name,
        each gets its index behind it.

    Arrays, tensors on any device and lists are taken alike. Of classes with equal scores the lower index comes first.

Returns:
    A dict of numbers in 0..1:
    `accuracy`: how often the first class is right.
    `top_{k}_accuracy`: how often the right class is among the first k, for each k above 1; only for scores. With no
        more classes than k it is 1.
    `macro_f1`: the mean of the classes' `f1`.
    `per_class`: for each class that occurs in references or predictions, by name, or by index without `id2label`, a
        dict of `precision`, `recall`, `f1` (0 where nothing was predicted, or nothing was there) and `support`, the
        number of references.

Raises:
    ValueError: If there are not as many predictions as references or none at all, something is not a number or not
        finite, a reference is not one of the K classes, k is not positive, or a class has no name in `id2label`.
"""

# The rank of the right class where a prediction is an index.
UNKNOWN = -1


class TopKAccuracy(evaluate.Metric):
    """Accuracy of a classifier. `inputs_description` says what goes in and what comes out.

    Scores are not kept: the cache has the first class, and where the scores put the right one.
    """

    def _info(self) -> evaluate.MetricInfo:
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": {"label": integer, "rank": integer}, "references": integer}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one image."""
        example = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [value] for name, value in example.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add images."""
        predictions, references = _to_array("predictions", predictions), _to_array("references", references)
        if predictions.ndim not in (1, 2) or references.shape != predictions.shape[:1]:
            raise ValueError(
                f"got predictions of shape {predictions.shape} and references of shape {references.shape}, expected "
                "(N, K) scores or (N,) class indices, and (N,) class indices."
            )
        references = _to_indices("references", references)
        if predictions.ndim == 1:
            labels = _to_indices("predictions", predictions)
            ranks = np.full_like(labels, UNKNOWN)
        else:
            labels, ranks = _rank(predictions, references)
        super().add_batch(
            predictions=[
                {"label": label, "rank": rank} for label, rank in zip(labels.tolist(), ranks.tolist(), strict=True)
            ],
            references=references.tolist(),
            **kwargs,
        )

    def _compute(
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
            raise ValueError("got no predictions: nothing to measure. Add some before compute().")
        labels, ranks = (np.array([p[name] for p in predictions]) for name in ("label", "rank"))
        hits = labels == np.array(references)
        if UNKNOWN in ranks:
            ks = []
        classes, places = np.unique([labels, references], return_inverse=True)
        predicted, support = (np.bincount(row, minlength=len(classes)) for row in places.reshape(2, -1))
        right = np.bincount(places.reshape(2, -1)[0][hits], minlength=len(classes))
        columns = {
            "precision": right / np.maximum(predicted, 1),
            "recall": right / np.maximum(support, 1),
            "f1": 2 * right / (predicted + support),
            "support": support,
        }
        names = class_names(classes.tolist(), id2label)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return {
            "accuracy": float(hits.mean()),
            **{f"top_{number}_accuracy": float((ranks < number).mean()) for number in ks if number > 1},
            "macro_f1": float(columns["f1"].mean()),
            "per_class": {name: dict(zip(columns, row, strict=True)) for name, row in zip(names, rows, strict=True)},
        }


def _rank(scores: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, K) and right classes (N,) → first classes (N,), and how many come before the right one (N,)."""
    count = scores.shape[1]
    if (references >= count).any():
        raise ValueError(
            f"references: got class {references.max()}, expected 0..{count - 1}: scores of {count} classes."
        )
    right = np.take_along_axis(scores, references[:, None], axis=1)
    before = (scores > right) | ((scores == right) & (np.arange(count) < references[:, None]))
    return scores.argmax(axis=1), before.sum(axis=1)


def _to_indices(name: str, values: np.ndarray) -> np.ndarray:
    """(N,) int64, none below 0."""
    if (values != np.floor(values)).any() or (values < 0).any():
        raise ValueError(f"{name}: got {values[:10].tolist()}, expected class indices, integers from 0.")
    return values.astype(np.int64)


def _to_array(name: str, values: Any) -> np.ndarray:
    """An array, a tensor or a list → an array of finite numbers."""
    values = [_from_tensor(value) for value in values] if isinstance(values, list) else _from_tensor(values)
    try:
        values = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: not an array of numbers: {error}") from error
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"{name}: got {values.dtype} values, expected numbers. Names of classes become indices by a model's "
            "`config.label2id`; evaluate's evaluators take it as `label_mapping`."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: got numbers that are not finite: the model or the annotations are broken.")
    return values


def _from_tensor(value: Any) -> Any:
    """A tensor, which may be on another device or in bfloat16, in a form that numpy takes; the rest as it is."""
    return value.detach().cpu().double() if hasattr(value, "detach") else value
