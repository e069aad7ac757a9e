"""Train segmentation models at equal CPU time: segmentation_models.pytorch's DeepLabV3+ and ours, one referee.

Both are trained on the same images, the peer in a plain loop. The test images, which neither sees during training, are
predicted at their own size; mean IoU is computed from their confusion matrix.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equal_cpu_time import Comparison, Predict, main, train_with_defaults
from workers import OURS, Candidate

PEER = "DeepLabV3+"
ENCODER = "timm-mobilenetv3_small_100"
CANDIDATES = {
    PEER: Candidate("segmentation_models_pytorch", "segmentation_models_pytorch"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf.training.trainer"),
}
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # name of the package: name of the folder
CLASSES_FILE = "classes.txt"
IGNORED = 255
CROP, BATCH, LEARNING_RATE, WARMUP, STRIDE = 320, 8, 1e-3, 0.1, 16  # of the peer
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOTES = (
    "mean IoU, pixel accuracy: on the test images at the size of their masks; mean over the seeds, and the results of "
    "each. CPU minutes: user and system time of the process until the training ends, imports included.",
    f"{OURS} is `mobilevit train DATA --model MODEL --max-minutes M` without loader processes; MODEL is xxs, from "
    f"scratch, if not in the name. {PEER} has the encoder {ENCODER} without pretrained weights; plain loop: batches "
    f"of {BATCH} random resized crops of {CROP}x{CROP}, flips, color jitter, AdamW with a learning rate of "
    f"{LEARNING_RATE}, warm-up and cosine decay fitted to the time.",
)


def write_masks(classes: tuple[str, ...], splits: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write PNG images and masks of class indices, 255 where ignored.

    Returns:
        Ground truth of the test split: class names, and `file_name` and `mask` of each image.
    """
    from PIL import Image

    from mobilevit_hf.data.images import load_image

    truth: dict[str, Any] = {"classes": list(classes), "images": []}
    for split_name, name in SPLITS.items():
        for kind in ("images", "masks"):
            (folder / name / kind).mkdir(parents=True)
        for number, sample in enumerate(splits[split_name]):
            file, mask = (folder / name / kind / f"{number:06}.png" for kind in ("images", "masks"))
            load_image(sample.image).save(file)
            Image.fromarray(sample.mask.read()).save(mask)
            if name == "test":
                truth["images"].append({"file_name": str(file.relative_to(folder)), "mask": str(mask)})
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    return truth


def score(truth: dict[str, Any], predictions: list[str]) -> dict[str, float]:
    """Return mean IoU over the classes with pixels, and pixel accuracy, of predicted masks in PNG files."""
    import numpy as np
    from PIL import Image

    count = len(truth["classes"])
    confusion = np.zeros((count, count), np.int64)
    for image, file in zip(truth["images"], predictions, strict=True):
        target, predicted = (np.asarray(Image.open(name)).astype(np.int64) for name in (image["mask"], file))
        pairs = (target * count + predicted)[target != IGNORED]
        confusion += np.bincount(pairs, minlength=count**2).reshape(count, count)
    correct = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - correct
    return {
        "mean_iou": float((correct / union)[union > 0].mean()),
        "pixel_accuracy": float(correct.sum() / confusion.sum()),
    }


def _save_mask(labels: Any, runs: Path, file: str) -> str:
    """Save predicted class indices (H, W); return the file."""
    import numpy as np
    from PIL import Image

    path = runs / f"predicted-{Path(file).name}"
    Image.fromarray(labels.numpy().astype(np.uint8)).save(path)
    return str(path)


def train_peer(data: Path, runs: Path, minutes: float, seed: int, initial: str) -> tuple[str, Predict]:
    """Train DeepLabV3+ in a plain loop; `initial` is not used."""
    import segmentation_models_pytorch as smp
    import torch
    from torch.nn.functional import cross_entropy
    from torchvision import tv_tensors
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    torch.manual_seed(seed)
    classes = (data / CLASSES_FILE).read_text(encoding="utf-8").splitlines()
    net = smp.DeepLabV3Plus(ENCODER, encoder_weights=None, classes=len(classes))
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(CROP, scale=(0.25, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3),
        ]
    )
    files = sorted((data / "train" / "images").iterdir())

    def load(file: Path) -> tuple[Any, Any]:
        image = decode_image(str(file), ImageReadMode.RGB)
        mask = tv_tensors.Mask(decode_image(str(file.parent.parent / "masks" / file.name), ImageReadMode.GRAY))
        image, mask = augment(image, mask)
        return normalize(image), mask[0].long()

    def batches() -> Iterator[tuple[Any, Any]]:
        while True:
            order = torch.randperm(len(files)).tolist()
            for start in range(0, len(order) - BATCH + 1, BATCH):
                images, masks = zip(*(load(files[index]) for index in order[start : start + BATCH]), strict=True)
                yield torch.stack(images), torch.stack(masks)

    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.01)
    start, steps = time.process_time(), 0
    for images, masks in batches():
        progress = (time.process_time() - start) / (60 * minutes)
        if progress >= 1:
            break
        factor = min(progress / WARMUP, (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) / 2)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        cross_entropy(net(images), masks, ignore_index=IGNORED).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    net.eval()

    @torch.inference_mode()
    def predict(file: str) -> str:
        image = normalize(decode_image(file, ImageReadMode.RGB))
        height, width = image.shape[1:]
        image = v2.functional.pad(image, [0, 0, -width % STRIDE, -height % STRIDE])
        return _save_mask(net(image[None])[0, :, :height, :width].argmax(0), runs, file)

    return f"{steps} steps", predict


def train_ours(data: Path, runs: Path, minutes: float, seed: int, initial: str) -> tuple[str, Predict]:
    """Train as `mobilevit train` does, from the checkpoint or variant `initial`."""
    import torch
    from transformers import AutoImageProcessor

    from mobilevit_hf import MobileViTForSemanticSegmentation
    from mobilevit_hf.data.images import load_image

    result = train_with_defaults(data, runs, minutes, seed, initial)
    net = MobileViTForSemanticSegmentation.from_pretrained(result.output_dir).eval()
    processor = AutoImageProcessor.from_pretrained(result.output_dir)

    @torch.inference_mode()
    def predict(file: str) -> str:
        image = load_image(file)
        outputs = net(**processor(image, return_tensors="pt"))
        (labels,) = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])
        return _save_mask(labels, runs, file)

    return f"{result.steps} steps", predict


if __name__ == "__main__":
    main(
        Comparison(
            description=(__doc__ or "").partition("\n")[0],
            task="image-segmentation",
            candidates=CANDIDATES,
            trainings={PEER: train_peer, OURS: train_ours},
            write_data=write_masks,
            score=score,
            metrics={"mean_iou": "mean IoU", "pixel_accuracy": "accuracy"},
            notes=NOTES,
        )
    )
