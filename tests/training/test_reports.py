"""Report of a finished training run: what it says about the run beyond an evaluation."""

import html
import re

import pytest
from PIL import Image
from training_runs import read_results

from mobilevit_hf.training.reports import first_images
from mobilevit_hf.training.setup import create_accelerator, prepare_run
from mobilevit_hf.training.state import TrainerState
from mobilevit_hf.training.trainer import TrainerCallback, train


def read_page(folder):
    """Return the text of the report without tags."""
    return html.unescape(re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text()))


@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_report_tells_how_the_weights_were_selected(task, one_thread, make_arguments, tmp_path):
    result = train(make_arguments(tmp_path / "run", task, max_steps=4, eval_steps=1))
    text = " ".join(read_page(tmp_path / "run").split())
    assert re.search(r"of step [1-4], are the best of 4 evaluations on validation", text)
    assert "4 steps in 0:" in text
    with Image.open(tmp_path / "run/train_batches.png") as image:
        assert min(image.size) > 100
    assert (tmp_path / "run/class_counts.png").exists()
    assert read_results(tmp_path / "run")["num_evaluations"] == result.num_evaluations == 4


@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_first_images_are_those_of_the_training(task, one_thread, make_arguments, tmp_path):
    arguments = make_arguments(tmp_path, task, multi_scale="off")
    run = prepare_run(arguments, create_accelerator(arguments), TrainerCallback())
    shown, names = first_images(run), []
    for name_samples, _ in run.loader.epoch(TrainerState()):
        names += name_samples()
    assert [image.file for image in shown[:18]] == names[:18]
    assert {image.image.size for image in shown} == {(96, 96)}
