"""`mobilevit convert`: convert official, timm and stock checkpoints."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import console


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Official (ml-cvnets), timm or stock checkpoint: a path or an https URL."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output directory.")],
    labels: Annotated[
        str | None, typer.Option(help="Class names: a text file with one name per line, imagenet-1k or coco.")
    ] = None,
    channel_order: Annotated[
        Literal["bgr", "rgb"] | None,
        typer.Option(help="Channel order of the input. Default: the source's."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=32, help="Side of the training images in pixels. Default: the source's."),
    ] = None,
) -> None:
    """Convert an official, timm or stock checkpoint.

    The task, the size and the number of classes are detected from the weights.
    """
    from ..convert import convert_checkpoint

    report = convert_checkpoint(source, out, labels=labels, channel_order=channel_order, image_size=image_size)
    for note in report.notes:
        console.log("note", note)
    variant = f"MobileViT-{report.variant.upper()}" if report.variant else "MobileViT"
    labels_text = f", {report.num_labels} labels" if report.num_labels else ""
    console.print_line(
        f"{variant} from {report.origin}: {report.task}{labels_text}, {report.channel_order.upper()} → {out}"
    )
