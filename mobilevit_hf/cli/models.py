"""`mobilevit models`: list pretrained models."""

import json
from dataclasses import asdict, dataclass

from rich.markup import escape
from rich.table import Table

from ..model_sources import ASSETS, builtin_models
from ..tasks import TaskName
from . import console
from .options import JsonOption

CLASSIFICATION: TaskName = "image-classification"
SEGMENTATION: TaskName = "image-segmentation"


@dataclass(frozen=True)
class Model:
    """A pretrained model.

    Attributes:
        name: Value for `--model`.
        task: Pipeline task.
        parameters: Number of parameters.
        license: License, as named on the Hub.
        result: Metric and dataset.
        builtin: Whether it comes with the package.
    """

    name: str
    task: str
    parameters: int
    license: str
    result: str
    builtin: bool


# Results from the paper: ImageNet-1k (section 4.1), PASCAL VOC 2012 (section 4.2.2).
OFFICIAL: tuple[tuple[str, TaskName, int, str], ...] = (
    ("mobilevit-xx-small", CLASSIFICATION, 1_272_024, "top-1 69.0 % on ImageNet-1k"),
    ("mobilevit-x-small", CLASSIFICATION, 2_317_848, "top-1 74.8 % on ImageNet-1k"),
    ("mobilevit-small", CLASSIFICATION, 5_578_632, "top-1 78.4 % on ImageNet-1k"),
    ("deeplabv3-mobilevit-xx-small", SEGMENTATION, 1_854_853, "mIoU 73.6 % on PASCAL VOC"),
    ("deeplabv3-mobilevit-x-small", SEGMENTATION, 2_944_069, "mIoU 77.1 % on PASCAL VOC"),
    ("deeplabv3-mobilevit-small", SEGMENTATION, 6_357_941, "mIoU 79.1 % on PASCAL VOC"),
)


def models(as_json: JsonOption = False) -> None:
    """List the built-in models, and Apple's on the Hub."""
    pretrained = [*map(_read_builtin, builtin_models()), *_official_models()]
    if as_json:
        print(json.dumps([asdict(model) for model in pretrained], indent=2))
        return
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    for model in pretrained:
        source = "built-in" if model.builtin else "on the Hub"
        text = f"{model.task}, {model.parameters / 1e6:.1f} M parameters, {model.license}, {source}\n{model.result}"
        table.add_row(f"[bold]{escape(model.name)}[/]", escape(text))
    console.output.print(table, highlight=False)
    console.print_line("")
    console.print_line(
        f"Usage: mobilevit predict photo.jpg --model NAME. Cards of the built-in models: {ASSETS}. "
        "Segmentation: mobilevit_hf.pipeline in Python."
    )


def _official_models() -> list[Model]:
    from ..hub.licenses import APPLE_LICENSE

    return [
        Model(f"apple/{name}", task, parameters, str(APPLE_LICENSE.name), f"{result} (from the paper)", builtin=False)
        for name, task, parameters, result in OFFICIAL
    ]


def _read_builtin(name: str) -> Model:
    """Return a built-in model as described by its card."""
    from huggingface_hub import metadata_load

    from ..hub.metadata import read_weights

    metadata = metadata_load(ASSETS / name / "README.md") or {}
    evaluation = metadata["model-index"][0]["results"][-1]
    metrics = ", ".join(f"{metric['name']} {metric['value']:.1%}" for metric in evaluation["metrics"][:2])
    return Model(
        name=name,
        task=metadata["pipeline_tag"],
        parameters=read_weights(ASSETS / name)[0],
        license=metadata["license"],
        result=f"{metrics} on {evaluation['dataset']['name']}, {evaluation['dataset']['split']}",
        builtin=True,
    )
