"""Train a semantic segmentation model in one or several processes.

accelerate launch scripts/train_segmentation.py DATA [--recipe scripts/recipes/voc-segmentation-s.yaml] [OPTIONS]

Options as in `mobilevit train`.
"""

from mobilevit_hf.cli import run
from mobilevit_hf.cli.train import make_command

if __name__ == "__main__":
    run(make_command("image-segmentation"))
