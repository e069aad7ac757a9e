"""Uploaded files of the demo page: checked, read and deleted."""

import contextlib
import threading
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder, is_in_or_equal, is_static_file

from ..data.images import DECODER_ERRORS, UnreadableImageError, open_header

# Of one request: 100 photos of 12 megapixels.
MAX_FILES, MAX_TOTAL_PIXELS = 100, 1_200_000_000


def check_upload(path: str) -> str:
    """Return a path from a request if it is an upload or an example. Gradio checks only some forms of requests.

    Raises:
        gradio.Error: If it is another file, whether it exists or not.
    """
    if is_in_or_equal(path, get_upload_folder()) or is_static_file(path):
        return path
    raise gr.Error("The image was not uploaded.", print_exception=False)


def count_pixels(path: str) -> int:
    """Return the number of pixels in the header of an image, 0 if it can't be read."""
    try:
        with open_header(path) as image:
            return image.width * image.height
    except DECODER_ERRORS:
        return 0


def check_uploads(paths: list[str]) -> None:
    """Check the number of files and the number of pixels in their headers.

    Raises:
        ValueError: If there are more than `MAX_FILES` files or `MAX_TOTAL_PIXELS` pixels.
    """
    if len(paths) > MAX_FILES:
        raise ValueError(f"Images: got {len(paths)} files, expected at most {MAX_FILES}. Upload fewer at a time.")
    pixels = sum(map(count_pixels, paths))
    if pixels > MAX_TOTAL_PIXELS:
        limit = MAX_TOTAL_PIXELS // 10**6
        raise ValueError(
            f"Images: got {pixels // 10**6} megapixels, expected at most {limit}. Upload fewer at a time."
        )


@lru_cache(maxsize=8)
def read_upload(path: str) -> bytes:
    """Return the content of an uploaded file. The last 8 are kept in memory, for changes of settings after deletion.

    Raises:
        UnreadableImageError: If the file was deleted.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImageError("it is no longer stored here. Upload it again.") from error


def delete_uploads(paths: Iterable[str], *, delay: float = 0) -> None:
    """Delete uploaded files after a delay in seconds; other files, such as the examples, are kept."""
    if delay:
        timer = threading.Timer(delay, delete_uploads, [paths])
        timer.daemon = True
        timer.start()
        return
    for path in map(Path, set(paths)):
        if is_in_or_equal(path, get_upload_folder()):
            with contextlib.suppress(OSError):  # already deleted, or in use on Windows: Gradio deletes it later
                path.unlink()
                path.parent.rmdir()  # which Gradio creates for each content
