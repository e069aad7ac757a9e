"""Continue a run with another number of processes than that of its checkpoint."""

from collections.abc import Callable
from typing import Any

from .setup import Run, count_steps
from .state import TrainerState


def change_processes(run: Run, state: TrainerState, saved: dict[str, Any], log: Callable[[str, str], object]) -> None:
    """Adapt the state of a checkpoint to the number of processes of a run that resumes from it.

    The processes continue with the samples of the epoch, or of a stream, that are left. The run keeps its progress: if
    its length follows from the dataset, the steps that are left change with the number of images per step.

    Args:
        run: Run with other processes, and perhaps other batch sizes, see `resume.BATCH_SIZES`.
        state: State of the checkpoint, which is modified.
        saved: Content of the checkpoint.
        log: Function for a message and its kind.
    """
    before, now = len(saved["random_states"]), run.accelerator.num_processes
    if before == now:
        return
    state.start, state.batch = state.position, 0
    state.order_processes = state.order_processes or before
    images_before = before * _images_per_process(saved["arguments"])
    images_now = now * _images_per_process(vars(run.arguments))
    if run.loader.num_samples and run.num_steps:
        steps_per_epoch = -(-run.loader.num_samples // images_before)
        steps_before = count_steps(run.arguments, run.task.dataset.task, steps_per_epoch)
        state.step_offset += (state.step + state.step_offset) * (run.num_steps / (steps_before or 1) - 1)
    text = f"Resuming with {now} process{'' if now == 1 else 'es'} instead of {before}"
    if images_before == images_now:
        log(f"{text}; a step still has {images_now} images.", "note")
    else:
        log(
            f"{text}: a step has {images_now} images instead of {images_before}, with the same learning rate. To keep "
            "the number, change --per-device-train-batch-size or --gradient-accumulation-steps.",
            "warning",
        )


def _images_per_process(arguments: dict[str, Any]) -> int:
    """Return the number of images of a process in an optimizer step, at the model's input size."""
    return arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
