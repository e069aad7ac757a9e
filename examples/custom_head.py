"""Image search: MobileViT with a custom head that maps similar images to nearby vectors.

    python examples/custom_head.py DATA_DIR MODEL OUTPUT_DIR [EPOCHS]

DATA_DIR has a folder of images per class, or `train` and `validation` with such folders, or any other format of
`mobilevit check-data`. MODEL is a MobileViT classifier on the Hub, such as apple/mobilevit-x-small, or in a directory.
The trained model embeds an image as a unit vector of length 64; the inner product of two embeddings is their cosine
similarity:

    from custom_head import MobileViTForImageEmbedding  # this file

    model = MobileViTForImageEmbedding.from_pretrained(OUTPUT_DIR)
    embed = pipeline("image-feature-extraction", model=model, image_processor=OUTPUT_DIR)
    similarity = numpy.inner(embed("wanted.jpg"), embed("other.jpg"))
"""

import argparse

if __name__ == "__main__":  # before the imports, which take seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", metavar="DATA_DIR")
    parser.add_argument("checkpoint", metavar="MODEL")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR")
    parser.add_argument("epochs", metavar="EPOCHS", nargs="?", type=float, default=20, help="default: %(default)s")
    args = parser.parse_args()

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoImageProcessor, EvalPrediction, Trainer, TrainingArguments, set_seed
from transformers.utils import ModelOutput

from mobilevit_hf import MobileViTConfig, MobileViTModel, MobileViTPreTrainedModel
from mobilevit_hf.data.dataloader import ImageDataset
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.transforms import make_transform


class MobileViTForImageEmbedding(MobileViTPreTrainedModel):
    """MobileViT with a linear projection to unit vectors, trained to be close to a learned vector of their class.

    The configuration has one more field, `embedding_size`: the length of the vectors.
    """

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__(config)
        self.mobilevit = MobileViTModel(config)
        self.projection = nn.Linear(config.neck_hidden_sizes[-1], config.embedding_size)
        self.class_vectors = nn.Linear(config.embedding_size, config.num_labels, bias=False)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ModelOutput:
        """Return `embeddings` (B, embedding_size) of images (B, 3, H, W), and the `loss` if labels (B,) are given."""
        embeddings = normalize(self.projection(self.mobilevit(pixel_values).pooler_output))
        if labels is None:
            return ModelOutput(embeddings=embeddings)
        similarity = embeddings @ normalize(self.class_vectors.weight).T
        return ModelOutput(loss=cross_entropy(similarity / 0.1, labels), embeddings=embeddings)


def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """Return the fraction of images whose nearest other image has the same class."""
    similarity = evaluation.predictions @ evaluation.predictions.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = evaluation.label_ids[similarity.argmax(axis=1)]
    return {"recall_at_1": float((nearest == evaluation.label_ids).mean())}


def main(args: argparse.Namespace) -> None:
    """Train the model."""
    set_seed(0)
    data = load_dataset(args.data_dir)
    print(*data.notes, *data.problems, sep="\n")
    names = {"id2label": dict(enumerate(data.classes)), "label2id": {name: i for i, name in enumerate(data.classes)}}
    config = MobileViTConfig.from_pretrained(args.checkpoint, **names)
    config.embedding_size = 64
    model = MobileViTForImageEmbedding.from_pretrained(args.checkpoint, config=config)
    processor = AutoImageProcessor.from_pretrained(args.checkpoint)
    augment = make_transform("image-classification", processor, training=True, crop_scale=(0.35, 1.0))
    train = ImageDataset(data.splits["train"], augment)
    validation = ImageDataset(
        data.splits["validation"], make_transform("image-classification", processor, training=False)
    )
    training = TrainingArguments(
        args.output_dir, num_train_epochs=args.epochs, per_device_train_batch_size=32, learning_rate=1e-3,
        weight_decay=0.01, lr_scheduler_type="cosine", warmup_steps=0.1, logging_strategy="epoch",
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="recall_at_1", remove_unused_columns=False
    )  # fmt: skip
    # The collator is `dict`: items of `ImageDataset` are whole batches.
    trainer = Trainer(model, training, dict, train, validation, processor, compute_metrics=compute_metrics)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(args)
