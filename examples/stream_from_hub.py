"""Fine-tune a classifier on a dataset of the Hub that is read on the way: nothing is downloaded whole, or kept.

    accelerate launch examples/stream_from_hub.py DATASET START OUTPUT_DIR [STEPS]

(For several processes on a CPU `torchrun --nproc-per-node 2`: `accelerate launch --cpu` starts one without MPI.)

DATASET, such as ethz/food101, has a split `train` and one more, `validation` or `test`, with images in a column
`image` and classes with names in a column `label`. START is a MobileViT classifier, such as apple/mobilevit-x-small.
`pipeline("image-classification", model=OUTPUT_DIR)` runs the result.
"""

import sys
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
from mobilevit_hf.data.decoding import LazyImage
from mobilevit_hf.data.transforms import Transform, make_transform
from mobilevit_hf.data.types import Sample


def prepare(row: dict[str, Any], transform: Transform) -> dict[str, Any]:
    """`pixel_values` and `labels` of a row."""
    return transform(LazyImage(row["image"]), Sample("", row["image"], label=row["label"]))


def make_loader(rows: datasets.IterableDataset, transform: Transform) -> DataLoader:
    """Batches of rows, which another process reads and decodes while the model computes.

    With several each would have files of its own, and where rows are sorted, batches of one class.
    """
    rows = rows.map(partial(prepare, transform=transform), remove_columns=rows.column_names)
    return DataLoader(rows, batch_size=32, num_workers=1)


def main() -> None:
    """Train and measure; a loader's process may import this file, and does not."""
    dataset, start, output_dir, steps = (*sys.argv[1:], 1000)[:4]
    accelerator = Accelerator()
    set_seed(0)
    splits = datasets.load_dataset(dataset, streaming=True)
    classes = splits["train"].features["label"].names
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    model = MobileViTForImageClassification.from_pretrained(start, **names, ignore_mismatched_sizes=True)
    processor = AutoImageProcessor.from_pretrained(start)
    augment = make_transform("image-classification", processor, training=True, crop_scale=(0.35, 1.0))
    process = make_transform("image-classification", processor, training=False)

    # Over and over, in an order that mixes a thousand rows at a time, of up to ten files.
    train = make_loader(splits["train"].repeat(None).shuffle(seed=0, buffer_size=1000), augment)
    validation = make_loader(splits["validation" if "validation" in splits else "test"], process)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(steps) // 10, int(steps))
    # Of several processes the first reads, and hands out: a row comes from the Hub once.
    model, optimizer, train, validation = accelerator.prepare(model, optimizer, train, validation)

    model.train()
    for step, batch in enumerate(islice(train, int(steps)), start=1):
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
        accelerator.unwrap_model(model).save_pretrained(output_dir)
        processor.save_pretrained(output_dir)


if __name__ == "__main__":
    main()
