"""Train an object detector in one or several processes.

accelerate launch scripts/train_detection.py DATA [--recipe scripts/recipes/coco-s.yaml] [OPTIONS]

Options as in `mobilevit train`.
"""

from mobilevit_hf.cli import run
from mobilevit_hf.cli.train import make_command

if __name__ == "__main__":
    run(make_command("object-detection"))
