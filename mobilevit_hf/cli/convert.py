"""`mobilevit convert`: other people's checkpoints."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..convert.conversion import convert_checkpoint
from . import console


class ChannelOrder(StrEnum):
    """The order of colors in the model's input."""

    bgr = "bgr"
    rgb = "rgb"


def convert(
    source: Annotated[str, typer.Argument(help="Official, timm or stock checkpoint, or ours: a path or https URL.")],
    out: Annotated[Path, typer.Argument(help="The directory to write.")],
    labels: Annotated[
        str | None, typer.Option(help="A text file with one label name a line, imagenet-1k or coco.")
    ] = None,
    channel_order: Annotated[
        ChannelOrder | None, typer.Option(help="How the model takes colors. Default: as the source was trained.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=32, help="Side of the training images in pixels. Default: the source's.")
    ] = None,
) -> None:
    """Turn an official, timm or stock checkpoint into a model."""
    order = channel_order.value if channel_order else None
    report = convert_checkpoint(source, out, labels=labels, channel_order=order, image_size=image_size)
    for note in report.notes:
        console.say("note", note)
    size = f"MobileViT-{report.variant.upper()}" if report.variant else "MobileViT"
    head = f", {report.num_labels} labels" if report.num_labels else ""
    console.output.print(
        f"{size} from {report.origin}: {report.task}{head}, {report.channel_order.upper()} → {escape(str(out))}",
        soft_wrap=True,
        highlight=False,
    )
