"""Time that a run with a limit reserves for its end."""

import math
from collections.abc import Mapping, Sequence

from ..data.types import Split

# A multiple of the last evaluation's duration, as the saved weights are evaluated once more if they are not the last,
# and seconds for report and files.
EVALUATION_RESERVE, CLOSING_SECONDS = 2.25, 6.0
# The test split is measured unless that takes more than this fraction of the limit.
MAX_TEST_FRACTION = 0.5


def reserve_seconds(evaluation_seconds: float, test_seconds: float, limit: float) -> float:
    """Return the seconds to reserve for the evaluations at the end, the report and the files."""
    test = 0.0 if skips_test(test_seconds, limit) else test_seconds
    return CLOSING_SECONDS + EVALUATION_RESERVE * evaluation_seconds + test


def skips_test(test_seconds: float, limit: float | None) -> bool:
    """Return whether the test split is not measured because of a limit in seconds."""
    return test_seconds > MAX_TEST_FRACTION * (math.inf if limit is None else limit)


def estimate_test(splits: Mapping[str, Split], evaluation_seconds: float, images_per_second: float) -> float:
    """Return the estimated seconds of an evaluation on the test split; 0 without one or before an estimate.

    Args:
        splits: Splits of the dataset.
        evaluation_seconds: Duration of the last evaluation on the validation split.
        images_per_second: Throughput of the training, whose forward pass alone is faster: used without such a split.
    """
    if not isinstance(test := splits.get("test"), Sequence):
        return 0.0
    if isinstance(validation := splits.get("validation"), Sequence):
        return evaluation_seconds * len(test) / len(validation)
    return len(test) / images_per_second if images_per_second else 0.0
