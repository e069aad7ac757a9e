"""`mobilevit models`: list pretrained models."""

from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from ..model_sources import ASSETS, builtin_models
from . import console
from .options import JsonOption


class Model(NamedTuple):
    """A pretrained model."""

    name: str
    task: str
    parameters: int
    license: str
    result: str
    builtin: bool


# Results from the paper: ImageNet-1k (section 4.1), PASCAL VOC 2012 (section 4.2.2).
OFFICIAL = (
    ("mobilevit-xx-small", "image-classification", 1_272_024, "top-1 69.0% on ImageNet-1k"),
    ("mobilevit-x-small", "image-classification", 2_317_848, "top-1 74.8% on ImageNet-1k"),
    ("mobilevit-small", "image-classification", 5_578_632, "top-1 78.4% on ImageNet-1k"),
    ("deeplabv3-mobilevit-xx-small", "image-segmentation", 1_854_853, "mIoU 73.6% on PASCAL VOC"),
    ("deeplabv3-mobilevit-x-small", "image-segmentation", 2_944_069, "mIoU 77.1% on PASCAL VOC"),
    ("deeplabv3-mobilevit-small", "image-segmentation", 6_357_941, "mIoU 79.1% on PASCAL VOC"),
)


def models(as_json: JsonOption = False) -> None:
    """List the built-in models, and Apple's on the Hub."""
    pretrained = [*map(_describe_builtin, builtin_models()), *_describe_official()]
    if as_json:
        console.print_json([model._asdict() for model in pretrained], indent=2)
        return
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for model in pretrained:
        source = "built-in" if model.builtin else "on the Hub"
        text = f"{model.task}, {model.parameters / 1e6:.1f} M parameters, {model.license}, {source}\n{model.result}"
        table.add_row(Text(model.name, "bold"), Text(text))
    console.output.print(table)
    console.print_line("")
    console.print_line(f"Usage: mobilevit predict photo.jpg --model NAME. Cards of the built-in models: {ASSETS}.")


def _describe_official() -> list[Model]:
    from ..hub.licenses import APPLE_LICENSE

    return [
        Model(f"apple/{name}", task, parameters, str(APPLE_LICENSE.name), f"{result} (from the paper)", builtin=False)
        for name, task, parameters, result in OFFICIAL
    ]


def _describe_builtin(name: str) -> Model:
    from huggingface_hub import metadata_load

    from ..hub.metadata import read_weights

    metadata = metadata_load(ASSETS / name / "README.md") or {}
    evaluation = metadata["model-index"][0]["results"][-1]
    parameters = read_weights(ASSETS / name)[0]
    metrics = ", ".join(f"{metric['name']} {metric['value']:.1%}" for metric in evaluation["metrics"][:2])
    result = f"{metrics} on {evaluation['dataset']['name']}, {evaluation['dataset']['split']}"
    return Model(name, metadata["pipeline_tag"], parameters, metadata["license"], result, builtin=True)
