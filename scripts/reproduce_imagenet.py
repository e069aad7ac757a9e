"""Reproduce the paper's ImageNet-1k accuracy: download and verify the data, train, evaluate, publish.

python scripts/reproduce_imagenet.py [--variant xxs] [--dry-run | --miniature | --measure]

Completed stages are skipped, and an interrupted training is resumed. See docs/reproduce.md.
"""

from mobilevit_hf.cli.process import run_and_exit

# isort: split

from reproduction.command import reproduce
from reproduction.miniature import write_imagenet
from reproduction.stages import Experiment
from reproduction.throughput import Rates

EXPERIMENT = Experiment(
    name="imagenet1k",
    recipe="imagenet1k-{}.yaml",
    task="image-classification",
    script="train_classification.py",
    data="ILSVRC/imagenet-1k",
    epochs=300,
    total_batch=1024,
    num_images={"train": 1_281_167, "validation": 50_000},
    num_classes=1000,
    metric="accuracy",
    paper={"xxs": 69.0, "xs": 74.8, "s": 78.4},
    write_miniature=write_imagenet,
)
# Measured with --measure on synthetic JPEGs; see docs/reproduce.md.
RATES = Rates(load=473, prepare=317, hardware="AMD EPYC")

if __name__ == "__main__":
    run_and_exit(lambda: reproduce(EXPERIMENT, __doc__.partition("\n")[0], RATES))
