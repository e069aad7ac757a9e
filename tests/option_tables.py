"""Tables of the training options in docs/training.md, from `TrainArguments`.

`python tests/option_tables.py` updates the page.
"""

import dataclasses
import re
from pathlib import Path

from mobilevit_hf.tasks import TaskName
from mobilevit_hf.training.arguments import DEFAULTS, FROM_SCRATCH, TrainArguments

PAGE = Path(__file__).parents[1] / "docs/training.md"
BLOCK = re.compile(r"(<!-- options: (.+?) -->\n).*?(<!-- end of options -->)", re.DOTALL)
TASK_TITLES: dict[TaskName, str] = {
    "image-classification": "classification",
    "object-detection": "detection",
    "image-segmentation": "segmentation",
}


def format_value(value):
    """Return a value as it is written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def describe_default(field, text):
    """Return the default of an option; by task, and from scratch, where it depends on these."""
    if field.default not in (None, ""):
        return format_value(field.default)
    values = {task: row[field.name] for task, row in DEFAULTS.items() if field.name in row}
    if not values:
        return text.rstrip(".")
    scratch = {task: row[field.name] for task, row in FROM_SCRATCH.items() if field.name in row}
    if len(set(values.values())) == 1 and not scratch and len(values) == len(DEFAULTS):
        return format_value(next(iter(values.values())))
    return ", ".join(
        f"{TASK_TITLES[task]} {format_value(value)}"
        + (f" ({format_value(scratch[task])} from scratch)" if task in scratch else "")
        for task, value in values.items()
    )


def render_table(panel):
    """Return the table of a group of options."""
    lines = ["", "| option | | default |", "|---|---|---|"]
    for field in dataclasses.fields(TrainArguments):
        if field.metadata["panel"] != panel or field.name == "data":
            continue
        name = field.name.replace("_", "-")
        flag = f"`--[no-]{name}`" if isinstance(field.default, bool) else f"`--{name}`"
        text, _, default = field.metadata["help"].partition(" Default: ")
        lines.append(f"| {flag} | {text.rstrip('.')} | {describe_default(field, default)} |".replace("  |", " |"))
    return "\n".join([*lines, "", ""])


def render_page(text):
    """Return the page with current tables."""
    return BLOCK.sub(lambda match: match[1] + render_table(match[2]) + match[3], text)


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
