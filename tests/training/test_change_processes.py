"""Checkpoints that another number of processes resumes from."""

from types import SimpleNamespace

import pytest

from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.change_processes import change_processes
from mobilevit_hf.training.setup import count_steps
from mobilevit_hf.training.state import TrainerState

TASK = "image-classification"


def change(before, now, *, step, batch_size=8, num_samples=8000, offset=0.0, **options):
    """Return the state after the change, the number of steps of the run, and the messages."""
    arguments = TrainArguments(data="data", per_device_train_batch_size=batch_size, **options).for_task(TASK)
    saved = {"random_states": before * [{}], "arguments": vars(arguments) | {"per_device_train_batch_size": 8}}
    num_steps = count_steps(arguments, TASK, -(-num_samples // (now * batch_size)) if num_samples else None)
    run = SimpleNamespace(
        arguments=arguments,
        accelerator=SimpleNamespace(num_processes=now),
        loader=SimpleNamespace(num_samples=num_samples),
        num_steps=num_steps,
        task=SimpleNamespace(dataset=SimpleNamespace(task=TASK)),
    )
    state, messages = TrainerState(step=step, epoch=1, batch=7, position=320, step_offset=offset), []
    change_processes(run, state, saved, lambda text, kind: messages.append((kind, text)))
    return state, num_steps, messages


def test_same_number_of_processes_changes_nothing():
    state, _, messages = change(2, 2, step=10, num_train_epochs=10)
    assert (state, messages) == (TrainerState(step=10, epoch=1, batch=7, position=320), [])


def test_new_processes_start_at_the_position_of_the_checkpoint():
    state, _, messages = change(4, 2, step=10, num_train_epochs=10, batch_size=16)
    assert (state.epoch, state.start, state.batch, state.order_processes) == (1, 320, 0, 4)
    ((kind, text),) = messages
    assert kind == "note"
    assert text == "Resuming with 2 processes instead of 4; a step still has 32 images."


@pytest.mark.parametrize(("now", "images"), [(1, 8), (8, 64)])
def test_another_number_of_images_per_step_is_a_warning(now, images):
    _, _, messages = change(4, now, step=10, num_train_epochs=10)
    ((kind, text),) = messages
    assert kind == "warning"
    assert f"a step has {images} images instead of 32, with the same learning rate" in text


@pytest.mark.parametrize(
    ("options", "expected"), [({"num_train_epochs": 4}, 0.5), ({"max_steps": 400}, 500 / 400), ({}, 500 / 3000)]
)
def test_progress_is_kept(options, expected):
    """Half of four epochs of 8000 images are 500 steps of 32 images; a number of steps is not converted."""
    state, num_steps, _ = change(4, 2, step=500, **options)
    assert (state.step + state.step_offset) / num_steps == pytest.approx(expected)
    again, num_steps, _ = change(2, 8, step=600, offset=state.step_offset, **options)
    assert (again.step + again.step_offset) / num_steps == pytest.approx(
        (600 + state.step_offset) / _steps(2, options)
    )


def _steps(processes, options):
    return count_steps(TrainArguments(data="data", **options).for_task(TASK), TASK, 8000 // (8 * processes))


def test_stream_has_no_length():
    state, _, messages = change(2, 1, step=10, num_samples=0, max_minutes=1.0)
    assert (state.start, state.step_offset, len(messages)) == (320, 0.0, 1)
