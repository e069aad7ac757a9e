"""Choose the precision for `dtype="auto"`: one that was checked for the model and that the processor is fast at.

The limits are stricter than for an export in an explicit precision. If they are not met, and on backends without a row
in `FEATURES`, the model runs in float32: float16 in ONNX Runtime is no faster on a CPU.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..records import ExportRecord
from ..tasks import TASKS, TaskName
from .formats import FORMATS

MIN_AUTO_AGREEMENT = 0.99
MAX_AUTO_DROP = 1.0  # percentage points, by quantization

# Features of a processor, any of which makes a precision fast, by the names of `torch.cpu.get_capabilities`. OpenVINO
# itself also reports bfloat16 for processors that emulate it.
FEATURES = {
    "int8": {"avx512_vnni", "avx_vnni", "amx_int8", "dot"},
    "bfloat16": {"avx512_bf16", "amx_bf16"},
}


class Choice(NamedTuple):
    """A precision, and the reason for it in a few words; "" if there is no other one."""

    dtype: str
    quantization: str | None
    reason: str

    def describe(self, backend: str) -> str:
        """Return the choice for a backend in one line."""
        return f"{backend} in {self.quantization or self.dtype}: {self.reason}."


def processor_features() -> set[str]:
    """Return the names of the processor's instruction sets; empty if unknown."""
    import torch

    if read := getattr(torch.cpu, "get_capabilities", None):  # newer than torch 2.8
        return {name for name, value in read().items() if value is True}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def lower_precisions(backend: str) -> list[str]:
    """Return the precisions of a backend that `dtype="auto"` may choose: some of "int8" and "bfloat16"."""
    if not (format := FORMATS.get(backend)):
        return []
    precisions = (*(() if format.int8_weights_only else format.quantizations), *format.dtypes)
    return [name for name in FEATURES if name in precisions]


def fast_precisions(backend: str) -> list[str]:
    """Return those of `lower_precisions` that the processor has instructions for."""
    features = processor_features()
    return [name for name in lower_precisions(backend) if FEATURES[name] & features]


def choose_precision(backend: str, task: TaskName, records: Sequence[ExportRecord]) -> Choice:
    """Choose the fastest file in a lower precision that passed its check, or float32.

    The fastest has the lowest recorded latency at batch size 1; if none is recorded, int8 comes before bfloat16.

    Args:
        records: Exports of one model on the backend, also those that failed their check.
    """
    if not (lower := lower_precisions(backend)):
        return Choice("float32", None, "")
    if not (fast := fast_precisions(backend)):
        return Choice("float32", None, f"this processor has no instructions for {' or '.join(reversed(lower))}")
    candidates = [record for record in records if _is_checked(record, fast)]
    passed = [record for record in candidates if is_accurate(record)]
    if passed:
        best = min(passed, key=lambda record: ((record.latency_ms or {}).get("1", math.inf), not record.quantization))
        return Choice(best.dtype or "float32", best.quantization, describe_check(best, task))
    if candidates:
        checks = (f"in {record.quantization or record.dtype}, {describe_check(record, task)}" for record in candidates)
        return Choice("float32", None, "; ".join(checks))
    return Choice("float32", None, f"no file in {' or '.join(reversed(fast))} was exported")


def may_be_chosen(record: ExportRecord) -> bool:
    """Return whether `dtype="auto"` may choose a file, on a processor with instructions for it."""
    return _is_checked(record, lower_precisions(record.backend)) and is_accurate(record)


def _is_checked(record: ExportRecord, precisions: Sequence[str]) -> bool:
    """Return whether a file was checked and computes in some of these lower precisions, such as "int8"."""
    lower = {name for name in (record.quantization, record.dtype) if name not in (None, "float32")}
    return set() < lower <= set(precisions) and (record.drop is not None or record.agreement is not None)


def is_accurate(record: ExportRecord) -> bool:
    """Return whether the check of a file in lower precision passed the limits of `dtype="auto"`."""
    if drop := record.drop:
        return 100 * (drop.model - drop.exported) <= MAX_AUTO_DROP
    return (_strict_agreement(record) or 0.0) >= MIN_AUTO_AGREEMENT


def _strict_agreement(record: ExportRecord) -> float | None:
    return record.agreement if record.strict_agreement is None else record.strict_agreement


def describe_check(record: ExportRecord, task: TaskName) -> str:
    """Return the result of the check of a file in lower precision in a few words, with the limit if it failed."""
    failed = not is_accurate(record)
    if drop := record.drop:
        limit = f", expected a drop of at most {MAX_AUTO_DROP:g} point" if failed else ""
        return f"{drop.metric} {drop.exported:.1%}, {drop.model:.1%} in float32, on {drop.num_images} images{limit}"
    limit = f", expected {MIN_AUTO_AGREEMENT:.0%}" if failed else ""
    kind = "sample images" if record.images == "samples" else "images"
    number = f" on {record.num_images} {kind}" if record.num_images else ""
    if TASKS[task].labels == "boxes":
        return f"mAP50 {_strict_agreement(record):.1%} with the boxes of float32 as ground truth{number}{limit}"
    unit = "pixels" if TASKS[task].labels == "mask" else "labels"
    return f"{_strict_agreement(record):.1%} of the {unit} equal those of float32{number}{limit}"
