"""Fine-tune a classifier on your images with transformers' Trainer.

    python examples/finetune_classifier.py DATA_DIR MODEL OUTPUT_DIR [EPOCHS]

DATA_DIR has a folder of images per class, or `train` and `validation` with such folders, or any other format of
`mobilevit check-data`. MODEL is a MobileViT classifier on the Hub, such as apple/mobilevit-x-small, or in a directory.
`pipeline("image-classification", model=OUTPUT_DIR)` runs the result.
"""

import argparse

if __name__ == "__main__":  # before the imports, which take seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", metavar="DATA_DIR")
    parser.add_argument("checkpoint", metavar="MODEL")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR")
    parser.add_argument("epochs", metavar="EPOCHS", nargs="?", type=float, default=20, help="default: %(default)s")
    args = parser.parse_args()

import evaluate
from transformers import AutoImageProcessor, EvalPrediction, Trainer, TrainingArguments, set_seed

from mobilevit_hf import MobileViTForImageClassification, metrics
from mobilevit_hf.data.dataloader import ImageDataset
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.transforms import make_transform

set_seed(0)
data = load_dataset(args.data_dir)
print(*data.notes, *data.problems, sep="\n")
names = {"id2label": dict(enumerate(data.classes)), "label2id": {name: i for i, name in enumerate(data.classes)}}
model = MobileViTForImageClassification.from_pretrained(args.checkpoint, **names, ignore_mismatched_sizes=True)
processor = AutoImageProcessor.from_pretrained(args.checkpoint)
augment = make_transform("image-classification", processor, training=True, crop_scale=(0.35, 1.0))
train = ImageDataset(data.splits["train"], augment)
validation = ImageDataset(data.splits["validation"], make_transform("image-classification", processor, training=False))
accuracy = evaluate.load(metrics.path("top_k_accuracy"))


def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """Return the accuracy and the macro F1."""
    scores = accuracy.compute(predictions=evaluation.predictions, references=evaluation.label_ids, k=1)
    return {name: scores[name] for name in ("accuracy", "macro_f1")}


training = TrainingArguments(
    args.output_dir, num_train_epochs=args.epochs, per_device_train_batch_size=32, learning_rate=1e-3,
    weight_decay=0.01, lr_scheduler_type="cosine", warmup_steps=0.1, label_smoothing_factor=0.1,
    logging_strategy="epoch", eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
    load_best_model_at_end=True, metric_for_best_model="accuracy", remove_unused_columns=False
)  # fmt: skip
# The collator is `dict`: items of `ImageDataset` are whole batches.
trainer = Trainer(model, training, dict, train, validation, processor, compute_metrics=compute_metrics)
trainer.train()
trainer.save_model()
