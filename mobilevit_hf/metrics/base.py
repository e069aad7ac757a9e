"""Input handling that the metrics share.

Metric files import this module, not its names: `evaluate.load` creates the first metric class that it meets in a file.
"""

from typing import Any

import evaluate


class ConvertingMetric(evaluate.Metric):
    """Metric that converts its inputs before they are cached."""

    def _convert(self, predictions: Any, references: Any) -> tuple[list[Any], list[Any]]:
        """Return a batch as declared in `features`."""
        raise NotImplementedError

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one image."""
        # evaluate.combine passes `predictions` and `references` here too.
        example = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [value] for name, value in example.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add a batch of images."""
        predictions, references = self._convert(predictions, references)
        super().add_batch(predictions=predictions, references=references, **kwargs)


def check_counts(predictions: Any, references: Any) -> None:
    """Check that there is one reference per prediction."""
    counts = [0 if batch is None else len(batch) for batch in (predictions, references)]
    if counts[0] != counts[1]:
        raise ValueError(f"got {counts[0]} predictions and {counts[1]} references. Pass one of each per image.")


def from_tensor(value: Any) -> Any:
    """Convert a tensor, possibly on another device or in bfloat16, for numpy; return other values unchanged."""
    return value.detach().cpu().double() if hasattr(value, "detach") else value
