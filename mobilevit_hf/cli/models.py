"""`mobilevit models`: which there are to start with."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from huggingface_hub import metadata_load
from rich.markup import escape
from rich.table import Table

from ..hub.licenses import APPLE_LICENSE
from ..hub.metadata import read_weights
from ..model_sources import ASSETS, builtin_models
from . import console

CLASSIFICATION, SEGMENTATION = "image-classification", "image-segmentation"


@dataclass(frozen=True)
class Model:
    """A line of the table.

    Attributes:
        name: For `--model`.
        task: As transformers' `pipeline` calls it.
        parameters: How many it has.
        license: As the Hub names it.
        result: What was measured on which data, and by whom.
        builtin: Whether it comes with the package.
    """

    name: str
    task: str
    parameters: int
    license: str
    result: str
    builtin: bool


# Results as in the paper: ImageNet-1k (section 4.1), PASCAL VOC 2012 (section 4.2.2).
OFFICIAL = [
    Model(f"apple/{name}", task, parameters, str(APPLE_LICENSE.name), f"{result} (the paper's)", builtin=False)
    for name, task, parameters, result in (
        ("mobilevit-xx-small", CLASSIFICATION, 1_272_024, "top-1 69.0 % on ImageNet-1k"),
        ("mobilevit-x-small", CLASSIFICATION, 2_317_848, "top-1 74.8 % on ImageNet-1k"),
        ("mobilevit-small", CLASSIFICATION, 5_578_632, "top-1 78.4 % on ImageNet-1k"),
        ("deeplabv3-mobilevit-xx-small", SEGMENTATION, 1_854_853, "mIoU 73.6 % on PASCAL VOC"),
        ("deeplabv3-mobilevit-x-small", SEGMENTATION, 2_944_069, "mIoU 77.1 % on PASCAL VOC"),
        ("deeplabv3-mobilevit-small", SEGMENTATION, 6_357_941, "mIoU 79.1 % on PASCAL VOC"),
    )
]


def models(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the built-in models, and Apple's on the Hub."""
    found = [*map(_read_builtin, builtin_models()), *OFFICIAL]
    if as_json:
        print(json.dumps([asdict(model) for model in found], indent=2))
        return
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    for model in found:
        where = "in the package" if model.builtin else "on the Hub"
        what = f"{model.task}, {model.parameters / 1e6:.1f} M parameters, {model.license}, {where}\n{model.result}"
        table.add_row(f"[bold]{escape(model.name)}[/]", escape(what))
    console.output.print(table, highlight=False)
    console.output.print(
        "\nUse one: mobilevit predict photo.jpg --model NAME. Cards of those in the package: "
        f"{escape(str(ASSETS))}. Segmentation runs in Python, by mobilevit_hf.pipeline.",
        soft_wrap=True,
        highlight=False,
    )


def _read_builtin(name: str) -> Model:
    """What the card of a built-in model says."""
    facts = metadata_load(ASSETS / name / "README.md")
    parameters, _, _ = read_weights(ASSETS / name)
    measured = facts["model-index"][0]["results"][-1]
    metrics = ", ".join(f"{metric['name']} {metric['value']:.1%}" for metric in measured["metrics"][:2])
    return Model(
        name=name,
        task=facts["pipeline_tag"],
        parameters=parameters,
        license=facts["license"],
        result=f"{metrics} on {measured['dataset']['name']}, {measured['dataset']['split']}",
        builtin=True,
    )
