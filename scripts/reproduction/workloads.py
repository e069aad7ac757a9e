"""Workload of an experiment for the throughput model: models, batch shapes, and measurements on this machine."""

import tempfile
from pathlib import Path
from typing import Any

from mobilevit_hf.cli.console import log
from mobilevit_hf.training.arguments import TaskArguments, TrainArguments, read_recipe

from .stages import SCRIPTS, Experiment
from .throughput import Rates, Workload, count_macs, measure_gpu, measure_loading, measure_preparation

BOXES = 7  # objects per image of COCO
GPU_STEPS = 20


def read_arguments(experiment: Experiment, args: Any) -> TaskArguments:
    """Return the options of the recipe, with the batch size per process."""
    values = read_recipe(SCRIPTS / "recipes" / experiment.recipe.format(args.variant))
    batch = experiment.total_batch // (args.processes * args.gradient_accumulation_steps)
    values |= {"per_device_train_batch_size": batch} | ({"multi_scale": "off"} if args.streaming else {})
    return TrainArguments(**values).for_task(experiment.task)


def batch_shapes(arguments: TaskArguments) -> list[Any]:
    """Return the batch shapes of a training, which it uses equally often."""
    from mobilevit_hf.training.dataloader import batch_shapes

    size = arguments.image_size
    assert size, "recipes of the paper set the image size"
    return batch_shapes(arguments.multi_scale, size, arguments.per_device_train_batch_size, 0.0)


def make_model(experiment: Experiment, variant: str) -> Any:
    """Return a model with random weights. Attention is eager: torch does not count the FLOPs of its fused kernels."""
    import mobilevit_hf
    from mobilevit_hf import MobileViTConfig, MobileViTSSDLiteConfig

    labels = {index: str(index) for index in range(experiment.num_classes)}
    fields: dict[str, Any] = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    if experiment.task == "object-detection":
        config: Any = MobileViTSSDLiteConfig.from_variant(variant, **fields)
        model: Any = mobilevit_hf.MobileViTSSDLiteForObjectDetection(config)
    elif experiment.task == "image-classification":
        model = mobilevit_hf.MobileViTForImageClassification(MobileViTConfig.from_variant(variant, **fields))
    else:
        config = MobileViTConfig.from_variant(variant, output_stride=16, **fields)
        model = mobilevit_hf.MobileViTForSemanticSegmentation(config)
    model.set_attn_implementation("eager")
    return model


def make_workload(experiment: Experiment, args: Any) -> Workload:
    """Return the workload of an experiment with the options of the command line."""
    arguments = read_arguments(experiment, args)
    shapes, model = batch_shapes(arguments), make_model(experiment, args.variant)
    sizes = [shape.size for shape in shapes]
    macs = sum(count_macs(model, shape.height) * shape.size for shape in shapes) / sum(sizes)
    return Workload(
        images=experiment.num_images["train"],
        epochs=experiment.epochs,
        step_images=args.gradient_accumulation_steps * sum(sizes) / len(sizes),
        processes=args.processes,
        loaders=args.processes * loaders_per_process(args.cores // args.processes),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=macs,
        validation_images=experiment.num_images["validation"],
        evaluations=round(1 / arguments.eval_steps),
    )


def loaders_per_process(cores: int) -> int:
    """Return the number of loading processes that a training starts for a GPU with this number of cores."""
    from mobilevit_hf.training.dataloader import MAX_WORKERS

    return max(1, min(MAX_WORKERS, cores - 1))


def measure(experiment: Experiment, args: Any) -> Rates:
    """Measure data loading on one core, on synthetic images in the dataset's typical size, and the GPU if any."""
    import torch

    from mobilevit_hf.data import load_dataset
    from mobilevit_hf.environment import cpu_name
    from mobilevit_hf.training.tasks import TRAINING_TASKS

    arguments = read_arguments(experiment, args)
    shapes, processor = batch_shapes(arguments), make_processor(experiment, arguments.image_size)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        dataset = load_dataset(experiment.write_miniature(Path(name) / "data"), task=experiment.task)
        samples: Any = dataset.splits["train"]
        options = TRAINING_TASKS[experiment.task](arguments, dataset).augmentation()
        log("measuring", "data loading on one core", color="cyan")
        load = measure_loading(experiment.task, processor, samples, shapes, options, args.seconds)
        prepare = measure_preparation(processor, samples, args.seconds)
    gpu, hardware = None, cpu_name() or "unknown processor"
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}, {args.precision}"
        log("measuring", f"training steps on {torch.cuda.get_device_name()}", color="cyan")
        model = make_model(experiment, args.variant)
        model.set_attn_implementation("sdpa")
        gpu = measure_gpu(model, label_maker(experiment), shapes, "cuda", args.precision, GPU_STEPS)
    else:
        log("note", "No GPU: only data loading is measured.")
    return Rates(load, prepare, gpu, hardware)


def make_processor(experiment: Experiment, size: int | None) -> Any:
    """Return an image processor as the training creates it."""
    from transformers import MobileViTImageProcessor

    from mobilevit_hf import MobileViTSSDLiteImageProcessor
    from mobilevit_hf.training.initialization import RESIZE_RATIO

    assert size, "recipes of the paper set the image size"
    square = {"height": size, "width": size}
    if experiment.task == "object-detection":
        return MobileViTSSDLiteImageProcessor(size=square)
    if experiment.task == "image-segmentation":
        return MobileViTImageProcessor(size=square, do_center_crop=False)
    return MobileViTImageProcessor(size={"shortest_edge": round(size * RESIZE_RATIO)}, crop_size=square, resample=2)


def label_maker(experiment: Experiment) -> Any:
    """Return a function that creates random labels for a number of images, a height and a width."""
    import torch

    classes, device = experiment.num_classes, "cuda" if torch.cuda.is_available() else "cpu"

    def make_labels(count: int, height: int, width: int) -> Any:
        if experiment.task == "image-classification":
            return torch.randint(classes, (count,), device=device)
        if experiment.task == "image-segmentation":
            return torch.randint(classes, (count, height, width), device=device)
        centers, sides = torch.rand(count, BOXES, 2), 0.1 + 0.2 * torch.rand(count, BOXES, 2)
        boxes = torch.cat([0.15 + 0.7 * centers, sides], dim=2).to(device)
        labels = torch.randint(classes, (count, BOXES), device=device)
        return [{"boxes": boxes[i], "class_labels": labels[i]} for i in range(count)]

    return make_labels
