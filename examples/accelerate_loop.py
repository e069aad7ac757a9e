"""Fine-tune a classifier on your images with a custom training loop, on one or several devices.

    accelerate launch examples/accelerate_loop.py DATA_DIR MODEL OUTPUT_DIR [EPOCHS]

On a CPU, start several processes with `torchrun --nproc-per-node 2`.

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
    parser.add_argument("epochs", metavar="EPOCHS", nargs="?", type=int, default=20, help="default: %(default)s")
    args = parser.parse_args()

import evaluate
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, set_seed
from torch.nn.functional import cross_entropy
from transformers import AutoImageProcessor, get_cosine_schedule_with_warmup

from mobilevit_hf import MobileViTForImageClassification, metrics
from mobilevit_hf.data.dataloader import ImageDataset, make_dataloader
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.sampler import BatchShape, MultiScaleBatchSampler
from mobilevit_hf.data.transforms import make_transform

accelerator = Accelerator()
rank, num_processes = accelerator.process_index, accelerator.num_processes
set_seed(0, device_specific=True)
data = load_dataset(args.data_dir)
accelerator.print(accelerator.state, *data.notes, *data.problems, sep="\n")
names = {"id2label": dict(enumerate(data.classes)), "label2id": {name: i for i, name in enumerate(data.classes)}}
model = MobileViTForImageClassification.from_pretrained(args.checkpoint, **names, ignore_mismatched_sizes=True)
processor = AutoImageProcessor.from_pretrained(args.checkpoint)
accuracy = evaluate.load(metrics.path("top_k_accuracy"), keep_in_memory=True)

# Each process loads its part of the data, so the loaders are not passed to `accelerator.prepare`.
augment = make_transform("image-classification", processor, training=True, crop_scale=(0.35, 1.0))
process = make_transform("image-classification", processor, training=False)
shape = BatchShape(*augment.normalize.size, 32)
batches = MultiScaleBatchSampler(len(data.splits["train"]), [shape], rank=rank, num_replicas=num_processes)
train = make_dataloader(ImageDataset(data.splits["train"], augment), batches)
validation = make_dataloader(ImageDataset(data.splits["validation"][rank::num_processes], process), shape.size)

num_steps = args.epochs * len(batches)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
schedule = get_cosine_schedule_with_warmup(optimizer, num_steps // 10, num_steps)
parallel_model, optimizer = accelerator.prepare(model, optimizer)

for epoch in range(args.epochs):
    batches.set_epoch(epoch)
    model.train()
    for batch in train:
        pixels, labels = (value.to(accelerator.device) for value in batch.values())
        loss = cross_entropy(parallel_model(pixels).logits, labels, label_smoothing=0.1)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    broadcast(list(model.buffers()))  # evaluate with the batch statistics that the main process saves
    with torch.inference_mode():
        outputs = [(model(b["pixel_values"].to(accelerator.device)).logits.cpu(), b["labels"]) for b in validation]
    for logits, labels in gather_object(outputs):
        accuracy.add_batch(predictions=logits, references=labels)
    accelerator.print(f"epoch {epoch + 1}: accuracy {accuracy.compute(k=1)['accuracy']:.3f}")

if accelerator.is_main_process:
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
