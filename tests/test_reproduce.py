"""Reproduction of the paper: stages, estimate and synthetic datasets; all stages in miniature on a loopback Hub."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from runpy import run_path

import pytest
import torch
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi

from mobilevit_hf.data import load_dataset
from mobilevit_hf.data.types import Problem
from mobilevit_hf.training.arguments import TrainArguments

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = REPOSITORY / "scripts"
sys.path.append(str(SCRIPTS))

from reproduction import command, miniature, stages, throughput, workloads  # noqa: E402

EXPERIMENTS = {
    name: run_path(str(SCRIPTS / f"reproduce_{name}.py"))["EXPERIMENT"] for name in ("imagenet", "coco", "voc")
}
WORKLOAD = throughput.Workload(
    images=1000,
    epochs=36,
    step_images=10,
    processes=4,
    loaders=8,
    parameters=1_000_000,
    macs=1e9,
    validation_images=100,
    evaluations=9,
)


def parse(experiment, *words):
    args = command.make_parser(experiment, "").parse_args(list(map(str, words)))
    args.processes = args.processes or 8
    args.data = args.data or experiment.data
    command.check_arguments(experiment, args)
    return args


def test_estimate_is_the_slower_of_loading_and_computation():
    """900 steps of 40 images: 0.5 s to load, 1 s to compute and 1 s for 6 MB of gradients."""
    rates = throughput.Rates(load=10, prepare=10, gpu=10)
    result = throughput.estimate(WORKLOAD, rates, cores=16, bandwidth=6e6)
    assert WORKLOAD.all_reduce_bytes == pytest.approx(6e6)
    assert (result.load, result.compute, result.all_reduce) == pytest.approx((0.125, 0.25, 0.25))
    assert result.evaluate == pytest.approx((1000 + 10 * 100) / 160 / 3600)
    assert result.total == pytest.approx(0.5 + result.evaluate)
    assert result.limit == "computation"
    slower = throughput.estimate(WORKLOAD, rates, cores=1, bandwidth=6e6)  # one of the eight loaders at a time
    assert (slower.load, slower.limit) == (pytest.approx(1.0), "data loading")
    assert slower.total == pytest.approx(1.0 + slower.evaluate)


def test_estimate_without_a_measured_gpu_is_a_lower_bound():
    rates = throughput.Rates(load=10, prepare=10)
    result = throughput.estimate(WORKLOAD, rates, cores=16, bandwidth=6e6)
    assert result.compute is None
    assert result.limit.startswith("not known")
    text = "\n".join(throughput.describe(WORKLOAD, rates, cores=16, bandwidth=6e6, price=2.0))
    assert "not measured" in text
    assert re.search("total +at least", text)
    assert re.search("cost +at least", text)
    assert "not measured" not in "\n".join(
        throughput.describe(WORKLOAD, replace(rates, gpu=1.0), cores=16, bandwidth=6e6)
    )


@pytest.mark.slow
def test_imagenet_workload_is_that_of_the_paper():
    """Batches of 327, 227, 128, 101 and 81 images on each of 8 GPUs; XXS has 1.27 M parameters, 0.4 G at 256x256."""
    experiment = EXPERIMENTS["imagenet"]
    workload = workloads.make_workload(experiment, parse(experiment, "--variant", "xxs", "--cores", 64))
    assert workload.step_images == pytest.approx((327 + 227 + 128 + 101 + 81) / 5)
    assert workload.steps == pytest.approx(300 * 1_281_167 / (8 * workload.step_images))
    assert workload.parameters == 1_272_024
    assert workload.macs * workload.step_images == pytest.approx(128 * 0.42e9, rel=0.1)
    assert (workload.loaders, workload.evaluations) == (8 * 7, 300)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "macs"), [("coco", 0.86e9), ("voc", 4.02e9)])
def test_multiply_accumulates_include_attention(name, macs):
    """As counted by fvcore, which also counts norms, for the official code."""
    model = workloads.make_model(EXPERIMENTS[name], "xxs")
    size = {"coco": 320, "voc": 512}[name]
    assert throughput.count_macs(model, size) == pytest.approx(macs, rel=0.1)


def test_measured_rates_are_used_for_their_model(tmp_path):
    default, measured = throughput.Rates(load=1, prepare=2), throughput.Rates(3, 4, 5.0, "machine")
    assert throughput.read_rates(tmp_path, default, "coco-s") == default
    throughput.write_rates(tmp_path, measured, "coco-s")
    throughput.write_rates(tmp_path, default, "coco-xs")
    assert throughput.read_rates(tmp_path, default, "coco-s") == measured


def test_gpu_measurement_counts_the_images_of_all_shapes(tiny_model, monkeypatch):
    import mobilevit_hf
    from mobilevit_hf.data.sampler import BatchShape

    model, ticks = tiny_model(mobilevit_hf.MobileViTForImageClassification), iter((0.0, 2.0, 0.0, 3.0))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(ticks))
    shapes = [BatchShape(32, 32, 4), BatchShape(64, 64, 2)]
    labels = lambda count, height, width: torch.zeros(count, dtype=torch.long)  # noqa: E731
    rate = throughput.measure_gpu(model, labels, shapes, "cpu", "fp32", steps=5)
    assert rate == pytest.approx((4 + 2) * 5 / (2 + 3))


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_training_command_has_the_batch_of_the_paper(name, tmp_path):
    experiment = EXPERIMENTS[name]
    args = parse(experiment, "--processes", 4, "--gradient-accumulation-steps", 2, "--output-dir", tmp_path)
    training, evaluation = stages.make_stages(experiment, args)
    words = [word for word in training.command if word != "--fp16"]
    assert len(words) == len(training.command) - 1
    assert words[:4] == ["torchrun", "--standalone", "--nproc-per-node", "4"]
    options = dict(zip(words[6::2], words[7::2], strict=False))
    images = int(options["--per-device-train-batch-size"]) * int(options["--gradient-accumulation-steps"])
    assert 4 * images == experiment.total_batch
    known = {f"--{field.name.replace('_', '-')}" for field in fields(TrainArguments)} | {"--recipe"}
    assert {word for word in words[6:] if word.startswith("--")} <= known
    assert Path(options["--recipe"]).is_file()
    assert Path(words[4]).is_file()
    assert evaluation.command[2] == options["--output-dir"]


def test_streamed_training_has_the_steps_of_the_epochs():
    experiment = EXPERIMENTS["imagenet"]
    training = stages.make_stages(experiment, parse(experiment, "--streaming"))[0].command
    assert int(training[training.index("--max-steps") + 1]) == round(300 * 1_281_167 / 1024)


def test_completed_stages_are_skipped(tmp_path, capfd):
    first, second = tmp_path / "results.json", tmp_path / "evaluation.json"
    write = f"from pathlib import Path; Path({str(first)!r}).touch()"
    chain = [
        stages.Stage("training", ("python", "-c", write), first),
        stages.Stage("evaluation", ("python", "-c", "print(1)"), second, first, saves_output=True),
    ]
    assert stages.run_stages(chain) == 0
    assert second.read_text() == "1\n"
    assert "skipped" not in capfd.readouterr().err
    assert stages.run_stages(chain) == 0
    assert capfd.readouterr().err.count("skipped") == 2
    os.utime(first, (2e9, 2e9))  # another training
    assert [stage.is_done() for stage in chain] == [True, False]


def test_failed_stage_ends_the_run_and_leaves_no_result(tmp_path, capfd):
    result = tmp_path / "evaluation.json"
    code = "print(1); raise SystemExit(3)"
    chain = [
        stages.Stage("evaluation", ("python", "-c", code), result, saves_output=True),
        stages.Stage("publication", ("python", "-c", "print('published')")),
    ]
    assert stages.run_stages(chain) == 3
    assert not result.exists()
    captured = capfd.readouterr()
    assert "published" not in captured.out
    assert "run the same command again" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", 3], "--processes: got 3 batches per step, expected a divisor of 1024"),
        (["--cores", 0], "--cores: got 0, expected more than 0"),
        (["--hub-model-id", "user/model"], "--license: got none"),
    ],
)
def test_invalid_options_are_errors(words, message):
    with pytest.raises(ValueError, match=message):
        parse(EXPERIMENTS["imagenet"], *words)


def test_data_of_another_dataset_is_an_error():
    experiment = EXPERIMENTS["coco"]
    stages.check_counts(experiment, "coco", 80, {"train": 117_266, "validation": 5000})
    with pytest.raises(ValueError, match="got coco with 10 classes, expected 80"):
        stages.check_counts(experiment, "coco", 10, {"train": 118_287, "validation": 5000})
    with pytest.raises(ValueError, match="got coco with 0 validation images, expected 5,000"):
        stages.check_counts(experiment, "coco", 80, {"train": 118_287})
    problems = [Problem(f"train[{i}]", "box outside the image", "box (1, 2, 3, 4)") for i in range(20)]
    stages.check_problems("coco", problems[:1], 1000)
    with pytest.raises(ValueError, match=r"20 invalid images.*Boxes are \[x, y, width, height\]"):
        stages.check_problems("coco", problems, 1000)


def test_miniature_coco_has_the_official_layout(tmp_path):
    dataset = load_dataset(miniature.write_coco(tmp_path / "coco", train=6, validation=2))
    assert (dataset.task, dataset.data_format) == ("object-detection", "coco")
    assert set(dataset.classes) == set(miniature.COCO_CATEGORIES.values())
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train": 6, "validation": 2}
    assert not dataset.problems
    assert sum(int(sample.objects.iscrowd.sum()) for sample in dataset.splits["train"]) == 1


def test_miniature_voc_has_the_official_layout(tmp_path):
    dataset = load_dataset(miniature.write_voc(tmp_path / "VOC2012", train=4, validation=2))
    assert (dataset.task, len(dataset.classes)) == ("image-segmentation", 21)
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train": 4, "validation": 2}
    classes = dataset.splits["train"][1].mask.read(size=(375, 500))
    assert set(classes.flatten().tolist()) == {*miniature.VOC_LABELS[:3], miniature.BORDER}


def test_miniature_does_not_complete_stages_of_the_full_run(tmp_path, monkeypatch, capfd):
    def dry_run(*words):
        monkeypatch.setattr(sys, "argv", ["reproduce_coco.py", "--output-dir", str(tmp_path), "--dry-run", *words])
        assert command.reproduce(EXPERIMENTS["coco"], "", throughput.Rates(load=1, prepare=1)) == 0
        return capfd.readouterr().err

    results = tmp_path / "miniature" / "coco-s" / "results.json"
    results.parent.mkdir(parents=True)
    results.touch()
    assert "(done)" in dry_run("--miniature")
    assert "(done)" not in dry_run()


def test_documented_commands_are_valid():
    text = (REPOSITORY / "docs" / "reproduce.md").read_text()
    lines = re.findall(r"^python scripts/reproduce_(\w+)\.py(.*)$", text, re.MULTILINE)
    assert {name for name, _ in lines} == set(EXPERIMENTS)
    for name, words in lines:
        experiment = EXPERIMENTS[name]
        assert stages.make_stages(experiment, parse(experiment, *shlex.split(words)))


@pytest.mark.slow
def test_all_stages_in_miniature(tmp_path):
    """ImageNet is streamed from a gated dataset on the Hub; its model becomes the detector's backbone."""

    def run(script, *words):
        process = subprocess.run(
            [sys.executable, SCRIPTS / f"reproduce_{script}.py", "--miniature", "--variant", "xxs", *words],
            env=hub.environment(tmp_path / "home"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout + process.stderr

    with HubServer(token=TOKEN) as hub:
        api = HfApi(endpoint=hub.url, token=TOKEN)
        api.create_repo("ILSVRC/imagenet-1k", repo_type="dataset")
        folder = miniature.write_imagenet(tmp_path / "shards")
        api.upload_folder(repo_id="ILSVRC/imagenet-1k", repo_type="dataset", folder_path=folder)
        hub.gate("ILSVRC/imagenet-1k", "dataset")
        publish = ("--license", "mit", "--hub-model-id")
        imagenet = ("imagenet", "--data", "ILSVRC/imagenet-1k", "--streaming", *publish, "user/classifier")
        assert "paper: 69.0%, of another dataset" in run(*imagenet)
        coco = ("coco", "--model", "runs/paper/miniature/imagenet1k-xxs", *publish, "user/detector")
        assert "paper: 19.9%, of another dataset" in run(*coco)
        assert run(*coco).count("skipped") == 3
        classifier, detector = (hub.files(f"user/{name}") for name in ("classifier", "detector"))
    assert len(json.loads(classifier["config.json"])["id2label"]) == 4
    assert json.loads(detector["config.json"])["model_type"] == "mobilevit_ssdlite"
    recipe = (tmp_path / "runs/paper/miniature/coco-xxs/recipe.yaml").read_text()
    assert re.search("^model: runs/paper/miniature/imagenet1k-xxs$", recipe, re.MULTILINE)
    evaluation = json.loads((tmp_path / "runs/paper/miniature/imagenet1k-xxs.evaluation.json").read_text())
    assert (evaluation["split"], evaluation["num_images"]) == ("validation", 16)
