"""Fine-tune a detector on your images with transformers' Trainer.

    python examples/finetune_detector.py DATA_DIR BACKBONE OUTPUT_DIR [EPOCHS]

DATA_DIR is in COCO's, Pascal VOC's or YOLO's format, or has two folders, `train` and `validation`, with images and a
`metadata.jsonl` with the objects of each image:

    {"file_name": "1.jpg", "objects": {"bbox": [[14, 20, 90, 45]], "category": ["cat"]}}

Boxes are x, y, width, height in pixels; both lists are empty for an image without objects. BACKBONE is a MobileViT
classifier on the Hub, such as apple/mobilevit-x-small, or in a directory.
`pipeline("object-detection", model=OUTPUT_DIR)` runs the result.
"""

import argparse

if __name__ == "__main__":  # before the imports, which take seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", metavar="DATA_DIR")
    parser.add_argument("backbone", metavar="BACKBONE")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR")
    parser.add_argument("epochs", metavar="EPOCHS", nargs="?", type=float, default=30, help="default: %(default)s")
    args = parser.parse_args()

from typing import Any

import evaluate
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed
from transformers.utils import ModelOutput

from mobilevit_hf import MobileViTSSDLiteForObjectDetection, MobileViTSSDLiteImageProcessor, metrics
from mobilevit_hf.data.dataloader import ImageDataset
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.transforms import make_transform

set_seed(0)
data = load_dataset(args.data_dir)
print(*data.notes, *data.problems, sep="\n")
model = MobileViTSSDLiteForObjectDetection.from_backbone(args.backbone, id2label=dict(enumerate(data.classes)))
processor = MobileViTSSDLiteImageProcessor.from_backbone(args.backbone)
augment = make_transform("object-detection", processor, training=True, zoom_out=0.0, crop=0.5)
train = ImageDataset(data.splits["train"], augment)
validation = ImageDataset(data.splits["validation"], make_transform("object-detection", processor, training=False))
coco_map = evaluate.load(metrics.path("coco_map"))


def collate(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with each image size as a row: Trainer cuts tensors to the size of the last batch."""
    for label in batch["labels"]:
        label["orig_size"] = label["orig_size"][None]
    return batch


def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """Return COCO's average precision; predictions and labels are lists of batches."""
    for (logits, boxes), labels in zip(evaluation.predictions, evaluation.label_ids, strict=True):
        outputs = ModelOutput(logits=torch.tensor(logits), pred_boxes=torch.tensor(boxes))
        detections = processor.post_process_object_detection(
            outputs, target_sizes=[label["orig_size"][0] for label in labels]
        )
        objects = [validation.samples[int(label["image_id"][0])].objects for label in labels]
        references = [{"boxes": o.boxes, "labels": o.labels, "iscrowd": o.iscrowd, "area": o.areas} for o in objects]
        coco_map.add_batch(predictions=detections, references=references)
    return {name: value for name, value in coco_map.compute().items() if name in ("map", "map_50")}


training = TrainingArguments(
    args.output_dir, num_train_epochs=args.epochs, per_device_train_batch_size=8, learning_rate=2e-3,
    weight_decay=0.01, max_grad_norm=10, lr_scheduler_type="cosine", warmup_steps=0.1,
    logging_strategy="epoch", eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
    load_best_model_at_end=True, metric_for_best_model="map", remove_unused_columns=False, eval_do_concat_batches=False
)  # fmt: skip
trainer = Trainer(model, training, collate, train, validation, processor, compute_metrics=compute_metrics)
trainer.train()
trainer.save_model()
