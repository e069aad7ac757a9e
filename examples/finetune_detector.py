"""Fine-tune a detector on your own pictures.

    python examples/finetune_detector.py DATA_DIR BACKBONE OUTPUT_DIR [EPOCHS]

DATA_DIR has two folders, `train` and `validation`, with pictures and a `metadata.jsonl` that says what is on each:

    {"file_name": "1.jpg", "objects": {"bbox": [[14, 20, 90, 45]], "category": ["cat"]}}

A box is x, y, width, height in pixels; both lists are empty where there is nothing. BACKBONE is a MobileViT
classifier, such as apple/mobilevit-x-small. `pipeline("object-detection", model=OUTPUT_DIR)` runs the result.
"""

import sys
from typing import Any

import evaluate
import torch
from datasets import load_dataset
from torchvision.ops import box_convert
from transformers import BatchFeature, EvalPrediction, Trainer, TrainingArguments, set_seed
from transformers.utils import ModelOutput

from mobilevit_hf import MobileViTSSDLiteForObjectDetection, MobileViTSSDLiteImageProcessor, metrics

data_dir, backbone, output_dir = sys.argv[1:4]
set_seed(0)
data = load_dataset("imagefolder", data_dir=data_dir)
names = sorted({name for split in data.values() for objects in split["objects"] for name in objects["category"]})
model = MobileViTSSDLiteForObjectDetection.from_backbone(backbone, id2label=dict(enumerate(names)))
processor = MobileViTSSDLiteImageProcessor.from_backbone(backbone)
coco_map = evaluate.load(metrics.path("coco_map"))


def collate(examples: list[dict[str, Any]]) -> BatchFeature:
    """Pictures and what is on them → the model's inputs."""
    pairs = [zip(example["objects"]["bbox"], example["objects"]["category"], strict=True) for example in examples]
    annotations = [{"annotations": [{"bbox": b, "category_id": names.index(n)} for b, n in pair]} for pair in pairs]
    return processor([example["image"] for example in examples], annotations=annotations, return_tensors="pt")


def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """COCO's average precision, of predictions and labels that come in batches."""
    for (logits, boxes), labels in zip(evaluation.predictions, evaluation.label_ids, strict=True):
        outputs = ModelOutput(logits=torch.tensor(logits), pred_boxes=torch.tensor(boxes))
        sizes = [label["orig_size"].tolist() for label in labels]
        found = processor.post_process_object_detection(outputs, target_sizes=sizes)
        for detections, label, (height, width) in zip(found, labels, sizes, strict=True):
            boxes = box_convert(torch.tensor(label["boxes"]), "cxcywh", "xyxy") * torch.tensor([width, height] * 2)
            coco_map.add(prediction=detections, reference={"boxes": boxes, "labels": label["class_labels"]})
    return {name: value for name, value in coco_map.compute().items() if name in ("map", "map_50")}


training = TrainingArguments(
    output_dir, num_train_epochs=float(sys.argv[4]) if len(sys.argv) > 4 else 30, per_device_train_batch_size=16,
    learning_rate=5e-4, logging_strategy="epoch", eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
    load_best_model_at_end=True, metric_for_best_model="map", remove_unused_columns=False, eval_do_concat_batches=False
)  # fmt: skip
trainer = Trainer(
    model, training, collate, data["train"], data["validation"], processor, compute_metrics=compute_metrics
)
trainer.train()
trainer.save_model()
