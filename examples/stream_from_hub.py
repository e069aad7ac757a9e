"""Fine-tune a classifier on a streamed Hub dataset, which is never downloaded as a whole or kept on disk.

    accelerate launch examples/stream_from_hub.py DATASET MODEL OUTPUT_DIR [STEPS]

On a CPU, start several processes with `torchrun --nproc-per-node 2`.

DATASET, such as ethz/food101, has a split `train` and a split `validation` or `test`, with images in the column
`image` and classes in the column `label`. MODEL is a MobileViT classifier on the Hub, such as
apple/mobilevit-x-small, or in a directory.
`pipeline("image-classification", model=OUTPUT_DIR)` runs the result.
"""

import argparse

if __name__ == "__main__":  # before the imports, which take seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("checkpoint", metavar="MODEL")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR")
    parser.add_argument("steps", metavar="STEPS", nargs="?", type=int, default=1000, help="default: %(default)s")
    args = parser.parse_args()

from functools import partial
from itertools import islice
from typing import Any

import datasets
import evaluate
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, get_cosine_schedule_with_warmup

from mobilevit_hf import MobileViTForImageClassification, metrics
from mobilevit_hf.data.images import LazyImage
from mobilevit_hf.data.transforms import Transform, make_transform
from mobilevit_hf.data.types import Sample


def prepare(row: dict[str, Any], transform: Transform) -> dict[str, Any]:
    """Return `pixel_values` and `labels` of a row."""
    return transform(LazyImage(row["image"]), Sample("", row["image"], label=row["label"]))


def make_dataloader(rows: datasets.IterableDataset, transform: Transform) -> DataLoader:
    """Return batches of rows that one worker process reads and decodes ahead.

    Each of several workers would read its own files, so the batches of sorted rows would have a single class.
    """
    rows = rows.map(partial(prepare, transform=transform), remove_columns=rows.column_names)
    return DataLoader(rows, batch_size=32, num_workers=1)


def main(args: argparse.Namespace) -> None:
    """Train and evaluate; the guard below keeps worker processes, which may import this file, from training."""
    accelerator = Accelerator()
    set_seed(0)
    splits = datasets.load_dataset(args.dataset, streaming=True)
    classes = splits["train"].features["label"].names
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    model = MobileViTForImageClassification.from_pretrained(args.checkpoint, **names, ignore_mismatched_sizes=True)
    processor = AutoImageProcessor.from_pretrained(args.checkpoint)
    augment = make_transform("image-classification", processor, training=True, crop_scale=(0.35, 1.0))
    process = make_transform("image-classification", processor, training=False)

    # Repeated endlessly, shuffled in a buffer of a thousand rows of up to ten files.
    train = make_dataloader(splits["train"].repeat(None).shuffle(seed=0, buffer_size=1000), augment)
    validation = make_dataloader(splits["validation" if "validation" in splits else "test"], process)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
    # The main process reads and distributes the rows, so each is downloaded once.
    model, optimizer, train, validation = accelerator.prepare(model, optimizer, train, validation)

    model.train()
    for step, batch in enumerate(islice(train, args.steps), start=1):
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            accelerator.print(f"step {step}: loss {loss:.3f}")

    model.eval()
    accuracy = evaluate.load(metrics.path("top_k_accuracy"), keep_in_memory=True)
    for batch in validation:
        with torch.inference_mode():
            logits = model(batch["pixel_values"]).logits
        logits, labels = accelerator.gather_for_metrics((logits, batch["labels"]))
        accuracy.add_batch(predictions=logits, references=labels)
    accelerator.print(f"accuracy {accuracy.compute(k=1)['accuracy']:.3f}")
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main(args)
