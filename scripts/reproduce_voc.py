"""Reproduce the paper's PASCAL VOC 2012 results of DeepLabv3: verify the data, train, evaluate, publish.

python scripts/reproduce_voc.py --data VOC2012 [--variant xxs] [--model BACKBONE] [--dry-run | --miniature | --measure]

VOC2012 contains JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/, to whose train.txt the images of SBD and
COCO are added. See docs/reproduce.md.
"""

from mobilevit_hf.cli.process import run_and_exit

# isort: split

from reproduction.command import reproduce
from reproduction.miniature import write_voc
from reproduction.stages import Experiment
from reproduction.throughput import Rates

EXPERIMENT = Experiment(
    name="voc",
    recipe="voc-segmentation-{}.yaml",
    task="image-segmentation",
    script="train_segmentation.py",
    data="VOC2012",
    epochs=50,
    total_batch=128,
    num_images={"train": 10_582, "validation": 1_449},  # train: with SBD, without COCO
    num_classes=21,
    metric="mean_iou",
    paper={"xxs": 73.6, "xs": 77.1, "s": 79.1},
    write_miniature=write_voc,
)
# Measured with --measure on synthetic JPEGs; see docs/reproduce.md.
RATES = Rates(load=208, prepare=241, hardware="AMD EPYC")

if __name__ == "__main__":
    run_and_exit(lambda: reproduce(EXPERIMENT, __doc__.partition("\n")[0], RATES))
