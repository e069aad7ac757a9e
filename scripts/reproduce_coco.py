"""Reproduce the paper's COCO results of SSDLite: verify the data, train, evaluate, publish.

python scripts/reproduce_coco.py --data COCO [--variant xxs] [--model BACKBONE] [--dry-run | --miniature | --measure]

COCO contains train2017/, val2017/ and annotations/instances_{train,val}2017.json. Without --model, the backbone is
Apple's; with the output of scripts/reproduce_imagenet.py, one's own. See docs/reproduce.md.
"""

from mobilevit_hf.cli.process import run_and_exit

# isort: split

from reproduction.command import reproduce
from reproduction.miniature import write_coco
from reproduction.stages import Experiment
from reproduction.throughput import Rates

EXPERIMENT = Experiment(
    name="coco",
    recipe="coco-{}.yaml",
    task="object-detection",
    script="train_detection.py",
    data="coco",
    epochs=200,
    total_batch=128,
    num_images={"train": 118_287, "validation": 5_000},
    num_classes=80,
    metric="map",
    paper={"xxs": 19.9, "xs": 24.8, "s": 27.7},
    write_miniature=write_coco,
)
# Measured with --measure on synthetic JPEGs; see docs/reproduce.md.
RATES = Rates(load=140, prepare=306, hardware="AMD EPYC")

if __name__ == "__main__":
    run_and_exit(lambda: reproduce(EXPERIMENT, __doc__.partition("\n")[0], RATES))
