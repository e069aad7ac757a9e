"""Fine-tuning the detector with transformers' `Trainer`."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import mobilevit_hf

COLORS = {"ball": (230, 40, 40), "cube": (40, 40, 230)}


def make_image(i):
    """Return a noise image with up to two colored rectangles, their boxes (x, y, w, h) in pixels and class names."""
    generator = np.random.default_rng(i)
    width, height = [(96, 64), (64, 96), (128, 128), (80, 60)][i % 4]
    pixels = generator.integers(0, 80, (height, width, 3), dtype=np.uint8)
    boxes, names = [], [["ball", "cube"], [], ["cube"], ["ball"]][(i + i // 4) % 4]
    for name, side in zip(names, (0, width // 2), strict=False):
        w, h = int(generator.integers(width // 4, width // 2)), int(generator.integers(height // 4, height // 2))
        x, y = side + int(generator.integers(0, width // 2 - w + 1)), int(generator.integers(0, height - h))
        pixels[y : y + h, x : x + w] = COLORS[name]
        boxes.append([x, y, w, h])
    return Image.fromarray(pixels), boxes, names


@pytest.fixture(scope="module")
def untrained_detector(tiny_fields, tmp_path_factory):
    """A tiny untrained detector without dropout."""
    fields = tiny_fields | {"hidden_dropout_prob": 0.0}
    names = {"id2label": dict(enumerate(COLORS)), "label2id": {name: i for i, name in enumerate(COLORS)}}
    torch.manual_seed(0)
    classifier = mobilevit_hf.MobileViTForImageClassification(mobilevit_hf.MobileViTConfig(**fields | names))
    folder = tmp_path_factory.mktemp("untrained")
    classifier.save_pretrained(folder / "classifier")
    detector = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_backbone(
        folder / "classifier", id2label=names["id2label"], image_size=64
    )
    detector.save_pretrained(folder / "detector")
    return folder / "detector"


@pytest.fixture(scope="module")
def examples():
    """Samples for `Trainer`, one of them without objects."""
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor(size={"height": 64, "width": 64})
    rows = []
    for i in range(8):
        image, boxes, names = make_image(i)
        objects = [
            {"bbox": box, "category_id": list(COLORS).index(name)} for box, name in zip(boxes, names, strict=True)
        ]
        inputs = processor(image, annotations={"image_id": i, "annotations": objects}, return_tensors="pt")
        rows.append({"pixel_values": inputs["pixel_values"][0], "labels": inputs["labels"][0]})
    return rows


def collate(rows):
    return {"pixel_values": torch.stack([r["pixel_values"] for r in rows]), "labels": [r["labels"] for r in rows]}


@pytest.fixture
def make_trainer(untrained_detector, examples, tmp_path):
    """A function that creates a `Trainer` of the tiny detector on the CPU."""

    def make(name="run", collate=collate, compute_metrics=None, **arguments):
        model = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(untrained_detector)
        arguments = {"per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1, "seed": 1} | arguments
        training = transformers.TrainingArguments(
            tmp_path / name,
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            eval_do_concat_batches=False,
            **arguments,
        )
        return transformers.Trainer(
            model=model,
            args=training,
            data_collator=collate,
            train_dataset=examples,
            eval_dataset=examples,
            processing_class=mobilevit_hf.MobileViTSSDLiteImageProcessor(size={"height": 64, "width": 64}),
            compute_metrics=compute_metrics,
        )

    return make


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_gradient_accumulation_averages_batch_losses(make_trainer):
    batches = []
    step = {"optim": "sgd", "learning_rate": 0.01, "lr_scheduler_type": "constant", "max_grad_norm": 0, "max_steps": 1}
    trainer = make_trainer(
        collate=lambda rows: batches.append(collate(rows)) or batches[-1], gradient_accumulation_steps=2, **step
    )
    expected = copy.deepcopy(trainer.model).train()
    trainer.train()
    assert len(batches) == 2
    losses = torch.stack([expected(**batch).loss for batch in batches])
    losses.mean().backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.01 * (0 if parameter.grad is None else parameter.grad)
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict(), atol=1e-6, rtol=1e-4)
    assert losses_of(trainer) == [pytest.approx(losses.mean().item(), rel=1e-3)]
    assert losses.std() > 0.1  # so that a weighted mean would differ


def test_evaluate_passes_model_outputs_and_labels_to_metrics(make_trainer, examples):
    evaluations = []
    trainer = make_trainer(
        compute_metrics=lambda evaluation: evaluations.append(evaluation) or {"n": len(evaluations)},
        per_device_eval_batch_size=3,
    )
    assert trainer.evaluate()["eval_n"] == 1
    (evaluation,) = evaluations
    assert [len(labels) for labels in evaluation.label_ids] == [3, 3, 2]
    labels = [label for batch in evaluation.label_ids for label in batch]
    for label, example, (image, *_) in zip(labels, examples, map(make_image, range(8)), strict=True):
        assert label["boxes"] == pytest.approx(example["labels"]["boxes"].numpy())
        assert label["class_labels"].tolist() == example["labels"]["class_labels"].tolist()
        assert tuple(label["orig_size"]) == image.size[::-1]
    with torch.no_grad():
        outputs = trainer.model.eval()(collate(examples)["pixel_values"])
    for i, name in enumerate(("logits", "pred_boxes")):
        predictions = np.concatenate([batch[i] for batch in evaluation.predictions])
        np.testing.assert_allclose(predictions, outputs[name].numpy(), atol=1e-4)
    assert all(len(batch) == 2 for batch in evaluation.predictions)


def test_resume_from_complete_checkpoint_equals_uninterrupted_run(make_trainer, detector_dir):
    uninterrupted = make_trainer("uninterrupted", save_steps=2)
    uninterrupted.train()
    checkpoint = Path(uninterrupted.args.output_dir) / "checkpoint-2"
    assert {path.name for path in checkpoint.iterdir()} >= {path.name for path in detector_dir.iterdir()}
    assert {path.name for path in checkpoint.glob("*model*") if path.suffix != ".py"} == {"model.safetensors"}
    auto_maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (checkpoint, detector_dir)]
    assert auto_maps[0] == auto_maps[1]
    resumed = make_trainer("resumed", save_steps=2)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 4
    torch.testing.assert_close(resumed.model.state_dict(), uninterrupted.model.state_dict(), atol=0, rtol=0)
    assert losses_of(resumed) == losses_of(uninterrupted)


def test_gradient_checkpointing_keeps_losses(make_trainer):
    plain, checkpointed = (
        make_trainer(name, max_steps=2, gradient_checkpointing=name == "checkpointed")
        for name in ("plain", "checkpointed")
    )
    counts = []
    for trainer in (plain, checkpointed):
        calls = []
        layer = trainer.model.backbone.encoder.layer[-1].transformer.layer[0]
        layer.register_forward_hook(lambda *args, calls=calls: calls.append(1))
        trainer.train()
        counts.append(len(calls))
    assert counts == [2, 4]  # twice per step: recomputed in the backward pass
    assert losses_of(checkpointed) == pytest.approx(losses_of(plain), rel=1e-3)


@pytest.mark.slow
def test_bf16_training_lowers_the_loss(make_trainer):
    trainer = make_trainer(learning_rate=3e-3, max_steps=20, bf16=True, dataloader_num_workers=1)
    trainer.train()
    losses = losses_of(trainer)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
