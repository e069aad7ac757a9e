"""Fine-tune transformers' RT-DETR with a MobileViT backbone on your images.

    python examples/rt_detr_on_mobilevit.py DATA_DIR BACKBONE OUTPUT_DIR [EPOCHS]

DATA_DIR is in COCO's, Pascal VOC's or YOLO's format, or has `metadata.jsonl` files as described in
finetune_detector.py. BACKBONE is a MobileViT classifier on the Hub, such as apple/mobilevit-x-small, or in a
directory. The loss needs SciPy: `pip install scipy`. `pipeline("object-detection", model=OUTPUT_DIR)` runs the result
after `import mobilevit_hf`, which registers the backbone.
"""

import argparse

if __name__ == "__main__":  # before the imports, which take seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", metavar="DATA_DIR")
    parser.add_argument("checkpoint", metavar="BACKBONE")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR")
    parser.add_argument("epochs", metavar="EPOCHS", nargs="?", type=float, default=100, help="default: %(default)s")
    args = parser.parse_args()

from typing import Any

import evaluate
import torch
from transformers import (
    AutoImageProcessor,
    EvalPrediction,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import ModelOutput

from mobilevit_hf import MobileViTBackbone, metrics
from mobilevit_hf.data.dataloader import ImageDataset
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.transforms import make_transform

set_seed(0)
data = load_dataset(args.data_dir)
print(*data.notes, *data.problems, sep="\n")
names = {"id2label": dict(enumerate(data.classes)), "label2id": {name: i for i, name in enumerate(data.classes)}}

backbone = MobileViTBackbone.from_pretrained(args.checkpoint, out_features=["stage3", "stage4", "stage5"])
backbone_processor = AutoImageProcessor.from_pretrained(args.checkpoint)
if backbone_processor.do_flip_channel_order:  # the weights take BGR, RT-DETR's processor returns RGB
    stem = backbone.conv_stem.convolution.weight
    stem.data = stem.data.flip(dims=[1])
# A small head for a small backbone: half of RT-DETR's width and decoder layers.
config = RTDetrConfig(
    **names, backbone_config=backbone.config, freeze_backbone_batch_norms=False,
    encoder_in_channels=backbone.channels, encoder_hidden_dim=128, encoder_ffn_dim=512, hidden_expansion=0.5,
    d_model=128, decoder_in_channels=[128, 128, 128], decoder_ffn_dim=512, decoder_layers=3, num_queries=100
)  # fmt: skip
model = RTDetrForObjectDetection(config)
model.model.backbone.model = backbone  # replaces the randomly initialized one
processor = RTDetrImageProcessor(size=backbone_processor.crop_size)  # larger for small objects
augment = make_transform("object-detection", processor, training=True, zoom_out=0.0, crop=0.5)
train = ImageDataset(data.splits["train"], augment)
validation = ImageDataset(data.splits["validation"], make_transform("object-detection", processor, training=False))
coco_map = evaluate.load(metrics.path("coco_map"))


def collate(batch: dict[str, Any]) -> dict[str, Any]:
    """Remove crowd boxes, which RT-DETR would train on, from a batch of `ImageDataset`.

    Each image size becomes a row: Trainer cuts tensors to the size of the last batch.
    """
    for label in batch["labels"]:
        label |= {name: label[name][label["iscrowd"] == 0] for name in ("class_labels", "boxes")}
        label["orig_size"] = label["orig_size"][None]
    return batch


def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """Return COCO's average precision; predictions and labels are lists of batches."""
    for (logits, boxes), labels in zip(evaluation.predictions, evaluation.label_ids, strict=True):
        outputs = ModelOutput(logits=torch.tensor(logits), pred_boxes=torch.tensor(boxes))
        sizes = [label["orig_size"][0].tolist() for label in labels]
        detections = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        objects = [validation.samples[int(label["image_id"][0])].objects for label in labels]
        references = [{"boxes": o.boxes, "labels": o.labels, "iscrowd": o.iscrowd, "area": o.areas} for o in objects]
        coco_map.add_batch(predictions=detections, references=references)
    return {name: value for name, value in coco_map.compute().items() if name in ("map", "map_50")}


training = TrainingArguments(
    args.output_dir, num_train_epochs=args.epochs, per_device_train_batch_size=8, learning_rate=5e-4,
    weight_decay=1e-4, max_grad_norm=0.1, lr_scheduler_type="cosine", warmup_steps=0.1,
    logging_strategy="epoch", eval_strategy="epoch", save_strategy="best", save_total_limit=1,
    metric_for_best_model="map", greater_is_better=True, remove_unused_columns=False, eval_do_concat_batches=False
)  # fmt: skip
trainer = Trainer(
    model, training, collate, train, validation, processor, compute_metrics=compute_metrics,
    preprocess_logits_for_metrics=lambda outputs, labels: outputs[1:3]  # only logits and boxes
)  # fmt: skip
trainer.train()
# `load_best_model_at_end` loads only half of RT-DETR's weights, as their names differ in files.
RTDetrForObjectDetection.from_pretrained(trainer.state.best_model_checkpoint).save_pretrained(args.output_dir)
processor.save_pretrained(args.output_dir)
