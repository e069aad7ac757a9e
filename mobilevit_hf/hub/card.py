"""The card of a model, from what is known of it: front matter, and a body by a template."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader

from .metadata import Evaluation, ModelFacts

# By this comment in its body a card is known to be made here.
CARD_MARKER = "<!-- Written by mobilevit_hf, which writes it anew when the model is published again. -->"
TEMPLATE = "card.md.jinja"

# What a figure is called: here, and in the Hub's list of metrics.
METRICS = {
    "accuracy": ("Accuracy", "accuracy"),
    "top_5_accuracy": ("Top-5 accuracy", "top_5_accuracy"),
    "macro_f1": ("Macro F1", "f1"),
    "map": ("mAP (IoU 0.50 to 0.95)", "map"),
    "map_50": ("mAP at IoU 0.50", "map_50"),
    "map_75": ("mAP at IoU 0.75", "map_75"),
    "map_small": ("mAP, small objects (area below 32² pixels)", "map_small"),
    "map_medium": ("mAP, medium objects", "map_medium"),
    "map_large": ("mAP, large objects (area above 96² pixels)", "map_large"),
}
# How many classes are named in the first sentence, and in tables.
NAMED_CLASSES, LISTED_CLASSES, WORST_CLASSES = 20, 40, 20
# A class with fewer training images is named among the limits, if there are no more of them than this.
FEW_IMAGES, FEW_CLASSES = 20, 10
# A longer command is written on several lines.
LINE_LENGTH = 80
# The options that say most about a training, in this order.
HYPERPARAMETERS = (
    "image_size", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "min_lr_rate",
    "warmup_steps", "weight_decay", "max_grad_norm", "label_smoothing_factor", "class_weights", "ema_decay",
    "hidden_dropout_prob", "freeze_backbone", "multi_scale", "horizontal_flip", "vertical_flip", "crop_scale",
    "rand_augment", "random_erasing", "mixup", "cutmix", "color_jitter", "zoom_out", "crop", "anchors", "bf16", "fp16",
    "seed",
)  # fmt: skip
# A recommended threshold is a best one, rounded.
THRESHOLD_ROUNDING = 0.001
# Values of options that do nothing.
OFF = (None, 0, "none", "off")
# Those that one task has only.
FOREIGN = {
    "image-classification": ("zoom_out", "crop", "anchors"),
    "object-detection": ("class_weights", "crop_scale", "rand_augment", "random_erasing", "mixup", "cutmix"),
}
# Characters that mean something in Markdown or HTML, as long as they may mean it; `_` does between words only.
SPECIAL = re.compile(r"[&<>`*\[\]|\\~$@#]|://|(?<![^\W_])_|_(?![^\W_])")


def is_ours(text: str) -> bool:
    """Whether a card was made here, and may be replaced."""
    return CARD_MARKER in text


def render_card(facts: ModelFacts, repo_id: str) -> str:
    """The README.md of a repository: front matter and body.

    Args:
        facts: About its model.
        repo_id: `user/name`.
    """
    environment = Environment(
        loader=PackageLoader(__package__),
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is Markdown: `md` escapes what comes from data
    )
    environment.filters |= {"md": escape, "percent": percent, "count": count, "range": show_range, "named": join_names}
    body = environment.get_template(TEMPLATE).render(
        marker=CARD_MARKER,
        repo_id=repo_id,
        name=repo_id.rpartition("/")[2],
        f=facts,
        given=facts.given,
        run=facts.run,
        headline=_best_known(facts.evaluations),
        chosen_on=_chosen_on(facts),
        results=[_table_of(evaluation) for evaluation in facts.evaluations],
        classes=_table_of_classes(facts),
        hyperparameters=_hyperparameters(facts),
        command=_wrap(facts.run.get("command", "")),
        machine=_machine(facts.run.get("hardware", {})),
        duration=_duration(facts.run.get("seconds")),
        exports=_table_of_exports(facts.exports),
        fastest=_fastest(facts.exports),
        rare=_rare_classes(facts),
        NAMED_CLASSES=NAMED_CLASSES,
        WORST_CLASSES=WORST_CLASSES,
    )
    text = re.sub(r"\n{3,}", "\n\n", body).strip()  # of what was left out
    return f"---\n{_front_matter(facts, repo_id)}\n---\n\n{text}\n"


def render_eval_results(facts: ModelFacts) -> dict[str, str]:
    """What was measured on a dataset of the Hub, as its leaderboards read it.

    Figures of a split that the dataset itself doesn't have are not among them.

    Returns:
        YAML by the names of files below `.eval_results/`.
    """
    own = [evaluation for evaluation in facts.evaluations if _is_of_its_data(evaluation, facts)]
    if facts.run.get("data", {}).get("validation_cut_off"):
        own = [evaluation for evaluation in own if evaluation.split != "validation"]
    evaluation = _best_known(own)
    if evaluation is None or len(facts.datasets) != 1:
        return {}
    metric = next(name for name in METRICS if name in evaluation.metrics)  # the one that papers give
    title, dataset = METRICS[metric][0], facts.datasets[0]
    entry = {
        "dataset": {"id": dataset, "task_id": "default"},
        "value": evaluation.metrics[metric],
        "notes": f"{title}, {evaluation.split} split, {count(evaluation.num_images, 'image')}",
    }
    if date := facts.run.get("date"):
        entry["date"] = date
    return {f"{dataset.rpartition('/')[2]}.yaml": yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)}


def _front_matter(facts: ModelFacts, repo_id: str) -> str:
    given, license = facts.given, facts.license
    tags = ["vision", "mobilevit", *(["ssdlite"] if facts.task == "object-detection" else []), *given.tags]
    results = list(_eval_results(facts))
    data = ModelCardData(
        language=given.language,
        license=license.id,
        license_name=license.name,
        license_link=license.link,
        library_name="transformers",
        pipeline_tag=facts.task,
        base_model=facts.base_model,
        base_model_relation="finetune" if facts.base_model else None,
        datasets=list(facts.datasets) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        tags=tags,
        model_name=repo_id.rpartition("/")[2],
        eval_results=results or None,
    )
    if not results:
        data.pop("model_name")
    return data.to_yaml()


def _eval_results(facts: ModelFacts) -> Iterator[EvalResult]:
    """Each figure of each evaluation, for the model index."""
    data = facts.run.get("data", {})
    for evaluation in facts.evaluations:
        trained_on = _is_of_its_data(evaluation, facts)
        dataset = facts.datasets[0] if len(facts.datasets) == 1 and trained_on else None
        for name, (title, metric) in METRICS.items():
            if evaluation.metrics.get(name, -1) >= 0:
                yield EvalResult(
                    task_type=facts.task,
                    dataset_type=dataset or (data["format"] if trained_on else "unpublished"),
                    dataset_name=evaluation.data or "unpublished",
                    dataset_split=evaluation.split,
                    metric_type=metric,
                    metric_name=title,
                    metric_value=evaluation.metrics[name],
                )


# --- what tables show ------------------------------------------------------------------------------------------------


def _chosen_on(facts: ModelFacts) -> Evaluation | None:
    """What the recommended threshold was chosen on: another split has another best one."""
    measured = (evaluation for evaluation in facts.evaluations if facts.threshold and evaluation.threshold)
    near = (each for each in measured if abs(each.threshold["value"] - facts.threshold) < THRESHOLD_ROUNDING)
    return next(near, None)


def _best_known(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The evaluation to quote: on images that chose nothing, if there is one."""
    tests = [evaluation for evaluation in evaluations if evaluation.split == "test"]
    return next(iter([*tests, *evaluations]), None)


def _is_of_its_data(evaluation: Evaluation, facts: ModelFacts) -> bool:
    """Whether it was measured on a split of what it was trained on, by the name without owner and configuration."""
    own = facts.run.get("data", {}).get("name")
    return None not in (own, evaluation.data) and own.rpartition("/")[2] == evaluation.data.rpartition("/")[2]


def _table_of(evaluation: Evaluation) -> dict[str, Any]:
    rows = [
        (title, evaluation.metrics[name], evaluation.intervals.get(name))
        for name, (title, _) in METRICS.items()
        if evaluation.metrics.get(name, -1) >= 0  # COCO's -1 stands for nothing to find
    ]
    return {"evaluation": evaluation, "rows": rows, "has_intervals": any(ends for _, _, ends in rows)}


def _table_of_classes(facts: ModelFacts) -> dict[str, Any] | None:
    """Of each class how well it is known, the worst first where there are too many; None if nobody measured."""
    evaluation = _best_known(facts.evaluations)
    if evaluation is None or not evaluation.metrics.get("per_class"):
        return None
    rows = {
        name: dict(row) if isinstance(row, Mapping) else {"average precision": row}
        for name, row in evaluation.metrics["per_class"].items()
    }
    key = "f1" if "f1" in next(iter(rows.values())) else "average precision"
    shown = list(rows)
    if len(shown) > LISTED_CLASSES:
        shown = sorted(rows, key=lambda name: rows[name][key])[:WORST_CLASSES]
    trained = _counts(facts, "train")
    titles = {"support": f"{evaluation.split} images", "f1": "F1"}
    unit = "objects" if facts.task == "object-detection" else "images"
    columns = ([f"training {unit}"] if trained else []) + [titles.get(name, name) for name in rows[shown[0]]]
    return {
        "evaluation": evaluation,
        "columns": columns,
        "rows": [
            (
                name,
                ([f"{trained.get(name, 0):,}"] if trained else []) + [_cell(value) for value in rows[name].values()],
            )
            for name in shown
        ],
        "total": len(rows),
        "complete": len(shown) == len(rows),
    }


def _counts(facts: ModelFacts, split: str) -> Mapping[str, int]:
    return facts.run.get("data", {}).get("counts", {}).get(split, {})


def _hyperparameters(facts: ModelFacts) -> list[tuple[str, Any]]:
    arguments, foreign = facts.run.get("arguments", {}), FOREIGN.get(facts.task, ())
    known = [(name, arguments[name]) for name in HYPERPARAMETERS if name in arguments and name not in foreign]
    return [(name, value) for name, value in known if name == "seed" or value not in OFF]


def _table_of_exports(exports: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A column for whatever is known of any of them."""
    if not exports:
        return None
    batches = sorted({int(batch) for export in exports for batch in export.get("latency_ms") or {}})
    columns = {
        "engine": lambda export: escape(str(export["backend"])) if export.get("backend") else None,
        "numbers": lambda export: escape(str(export.get("quantization") or export.get("dtype") or "")) or None,
        "size": lambda export: megabytes(export["bytes"]) if export.get("bytes") else None,
        "agrees with PyTorch": lambda export: (
            percent(export["agreement"]) if export.get("agreement") is not None else None
        ),
        "largest difference": lambda export: f"{export['max_error']:.1g}" if _is_number(export, "max_error") else None,
    } | {f"ms, batch of {batch}": lambda export, batch=batch: _latency(export, batch) for batch in batches}
    cells = [{title: value(export) for title, value in columns.items()} for export in exports]
    shown = [title for title in columns if any(row[title] for row in cells)]
    machines = {_machine_of(export) for export in exports} - {None}
    return {
        "columns": shown,
        "rows": [[row[title] or "" for title in shown] for row in cells],
        "machine": machines.pop() if len(machines) == 1 else None,
    }


def _is_number(export: Mapping[str, Any], name: str) -> bool:
    return isinstance(export.get(name), int | float)


def _latency(export: Mapping[str, Any], batch: int) -> str | None:
    value = (export.get("latency_ms") or {}).get(str(batch))
    return None if value is None else f"{value:.1f}"


def _machine_of(export: Mapping[str, Any]) -> str | None:
    machine = export.get("machine")
    return _machine(machine) if isinstance(machine, Mapping) else machine


def _fastest(exports: Sequence[Mapping[str, Any]]) -> str | None:
    """The backend that answers first, of those that `pipeline` runs."""
    known = [export for export in exports if export.get("backend") in ("openvino", "onnx")]
    one = min(known, key=lambda export: (export.get("latency_ms") or {}).get("1", math.inf), default=None)
    return one and one["backend"]


def _machine(hardware: Mapping[str, Any]) -> str | None:
    """What computed, as one reads it."""
    name = hardware.get("gpu") or hardware.get("cpu") or hardware.get("system")
    if not name:
        return None
    if "gpu" not in hardware and hardware.get("cores"):
        used = (
            f", {hardware['threads']} used" if hardware.get("threads", hardware["cores"]) < hardware["cores"] else ""
        )
        name = f"{name} ({count(hardware['cores'], 'core')}{used})"
    processes = hardware.get("processes", 1)
    return name if processes == 1 else f"{name}, {processes} processes"


def _rare_classes(facts: ModelFacts) -> list[tuple[str, int]]:
    rare = [(name, number) for name, number in _counts(facts, "train").items() if number < FEW_IMAGES]
    return sorted(rare, key=lambda item: item[1]) if len(rare) <= FEW_CLASSES else []


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 90:
        return count(max(1, round(seconds)), "second")
    minutes = round(seconds / 60)
    return count(minutes, "minute") if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _wrap(command: str) -> str:
    """On several lines if it is long, broken before options."""
    lines = [""]
    for part in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(part) > LINE_LENGTH:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else percent(value)


# --- text ------------------------------------------------------------------------------------------------------------


def escape(text: Any) -> str:
    """Text from data on one line, in which nothing is Markdown or HTML."""
    visible = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(text))
    plain = " ".join(visible.split())
    return SPECIAL.sub(lambda match: "".join(f"&#{ord(c)};" for c in match[0]), plain)


def percent(value: float) -> str:
    """A share 0..1; negative stands for nothing to find."""
    return "-" if value < 0 else f"{value:.1%}"


def count(number: int, noun: str) -> str:
    """Such as "1 image", "2,000 images"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def megabytes(number: int) -> str:
    """A size as the Hub writes it."""
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


def show_range(numbers: Mapping[str, float]) -> str:
    """Such as "180 to 400 (median 240)"."""
    low, high = numbers["min"], numbers["max"]
    return f"{low:g} to {high:g} (median {numbers['median']:g})" if low < high else f"{low:g}"


def join_names(names: Sequence[str]) -> str:
    """Escaped, such as "cat, dog and owl"."""
    escaped = [escape(name) for name in names]
    return " and ".join(filter(None, [", ".join(escaped[:-1]), *escaped[-1:]]))
