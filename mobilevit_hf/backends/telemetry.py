"""Imports of the runtimes that send usage data to their vendors unless told not to."""

import contextlib
import importlib
import sys
from typing import Any

OPENVINO_TELEMETRY = "openvino_telemetry"


def import_openvino(name: str = "openvino") -> Any:
    """Import OpenVINO, or a package on top of it such as NNCF, without telemetry.

    It sends each import and conversion to Google Analytics, with an id that it stores in the home folder.
    """
    # None is how Python marks a package as not installed, which OpenVINO and NNCF allow.
    if telemetry := sys.modules.setdefault(OPENVINO_TELEMETRY, None):  # ty: ignore[no-matching-overload]
        with contextlib.suppress(RuntimeError):  # not configured
            telemetry.Telemetry().consent = False
    return importlib.import_module(name)


def import_onnxruntime() -> Any:
    """Import ONNX Runtime without telemetry, which it sends on Windows."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime
