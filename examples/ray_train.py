"""Train a model on a Ray cluster with Ray Train: the training of `mobilevit train` in a process per worker.

    python examples/ray_train.py DATA MODEL OUTPUT_DIR [--workers 2] [--gpu] [--epochs 12]

DATA, MODEL and OUTPUT_DIR are those of `mobilevit train`. On several nodes, DATA is a Hub dataset or, like OUTPUT_DIR,
a path that all of them can reach. They need `pip install 'ray[train]'`. When a worker or its node dies, all workers
start again and continue from the latest checkpoint in OUTPUT_DIR; so does this command when it is run again. Ray keeps
its own records in OUTPUT_DIR-ray.
"""

import argparse
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before the imports, which take seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="number of processes; default: %(default)s")
    parser.add_argument("--gpu", action="store_true", help="a GPU per worker")
    parser.add_argument("--epochs", type=float, help="default: that of `mobilevit train`")
    args = parser.parse_args()

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_worker(arguments: dict[str, Any]) -> None:
    """Train in a worker: accelerate reads its rank and the address of the others, which Ray Train has set."""
    from mobilevit_hf.training import TrainArguments, train

    train(TrainArguments(**arguments))


def main(args: argparse.Namespace) -> None:
    """Start the workers and wait for them."""
    output_dir = args.output_dir.resolve()
    arguments = {
        "data": str(Path(args.data).resolve()) if Path(args.data).exists() else args.data,
        "model": str(Path(args.model).resolve()) if Path(args.model).exists() else args.model,
        "output_dir": str(output_dir),
        "num_train_epochs": args.epochs,
        "use_cpu": not args.gpu,
        "resume": "auto",
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=args.gpu),
        run_config=RunConfig(
            name=f"{output_dir.name}-ray",
            storage_path=str(output_dir.parent),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    trainer.fit()
    print(f"Trained {output_dir}")


if __name__ == "__main__":
    main(args)
