"""Requests of the Inference API: the content of an image file, or JSON with the file in base64 and parameters."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..data.image_formats import is_url
from ..tasks import TaskName

# Fields of a JSON request; `options` are those of the Inference API, about its cache and its loading of models.
FIELDS = ("inputs", "parameters", "options")
# Of a JSON request, besides the image.
MAX_PARAMETER_BYTES = 65_536


class RequestError(ValueError):
    """A request that can't be answered. The message is one line for the client.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request(NamedTuple):
    """An image file's content, and arguments of the pipeline's call."""

    image: bytes
    parameters: dict[str, Any]


class _Parameter(NamedTuple):
    is_valid: Callable[[Any], bool]
    expected: str


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


_FRACTION = _Parameter(_is_fraction, "a number from 0 to 1")
_FUNCTIONS = ("sigmoid", "softmax", "none")
# As huggingface_hub's `InferenceClient` sends them.
PARAMETERS: dict[TaskName, dict[str, _Parameter]] = {
    "image-classification": {
        "top_k": _Parameter(lambda value: type(value) is int and value >= 1, "an integer of at least 1"),
        "function_to_apply": _Parameter(lambda value: value in _FUNCTIONS, " or ".join(_FUNCTIONS)),
    },
    "object-detection": {"threshold": _FRACTION},
    "image-segmentation": {
        "subtask": _Parameter(lambda value: value == "semantic", "semantic"),
        # Of instance and panoptic segmentation; as in transformers, they don't change semantic segmentation.
        "threshold": _FRACTION,
        "mask_threshold": _FRACTION,
        "overlap_mask_area_threshold": _FRACTION,
    },
}


def is_json(content_type: str) -> bool:
    """Return whether a Content-Type header is that of JSON."""
    return content_type.partition(";")[0].strip().lower() == "application/json"


def max_body_bytes(content_type: str, max_image_bytes: int) -> int:
    """Return the maximum size of a request's body: base64 has 4 characters for 3 bytes."""
    return max_image_bytes * 4 // 3 + MAX_PARAMETER_BYTES if is_json(content_type) else max_image_bytes


def parse_request(body: bytes, content_type: str, task: TaskName, max_image_bytes: int) -> Request:
    """Return the image and the parameters of a request.

    Raises:
        RequestError: If it is invalid.
    """
    if content_type.lower().startswith("multipart/"):
        raise RequestError(415, "Content-Type: got a form, expected an image. Send the file's content as the body.")
    if not is_json(content_type):
        image, parameters = body, {}
    else:
        image, parameters = _parse_json(body, task)
    if not image:
        raise RequestError(400, "image: got no content, expected an image file. Send its content as the body.")
    if len(image) > max_image_bytes:
        raise too_large(max_image_bytes)
    return Request(image, parameters)


def too_large(max_image_bytes: int) -> RequestError:
    """Return the error of an image file of more than this size."""
    return RequestError(413, f"image: got more than {max_image_bytes} bytes. Send a smaller file.")


def _parse_json(body: bytes, task: TaskName) -> tuple[bytes, dict[str, Any]]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "body: got invalid JSON. Send the content of an image file, or valid JSON.") from error
    if not isinstance(fields, dict) or "inputs" not in fields:
        raise RequestError(400, "body: got no inputs, expected an object with the image in base64 as inputs. Add it.")
    if unknown := [name for name in fields if name not in FIELDS]:
        raise RequestError(422, f"{unknown[0][:50]!r}: unknown field, expected {', '.join(FIELDS)}. Leave it out.")
    return _decode_base64(fields["inputs"]), _check_parameters(fields.get("parameters"), task)


def _decode_base64(inputs: Any) -> bytes:
    if not isinstance(inputs, str):
        raise RequestError(422, "inputs: got no text, expected one image in base64. Send a request per image.")
    if is_url(inputs):
        raise RequestError(422, "inputs: got a URL, which is not fetched. Send the content of the image.")
    if inputs.startswith("data:"):
        inputs = inputs.partition(",")[2]
    try:
        return base64.b64decode(inputs, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, "inputs: got invalid base64. Send the content of an image file in base64.") from error


def _check_parameters(given: Any, task: TaskName) -> dict[str, Any]:
    """Return the parameters that are not null."""
    if not isinstance(given, Mapping | None):
        raise RequestError(422, "parameters: got no object. Send an object, or leave it out.")
    known = PARAMETERS[task]
    parameters = {name: value for name, value in (given or {}).items() if value is not None}
    for name, value in parameters.items():
        if name not in known:
            expected = ", ".join(known)
            raise RequestError(422, f"{name[:50]!r}: unknown parameter of {task}, expected {expected}. Leave it out.")
        if not known[name].is_valid(value):
            got = json.dumps(value)[:50]
            raise RequestError(422, f"{name}: got {got}, expected {known[name].expected}. Change it.")
    return parameters
