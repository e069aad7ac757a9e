"""Add a trained model to the package as a built-in model.

python scripts/make_builtin.py RUN NAME --license mit [--dataset HUB_ID] [--description TEXT]

RUN is an output directory of `mobilevit train`. Test metrics are included if they were saved with `mobilevit evaluate
RUN DATA --split test --json > RUN/evaluation-test.json`. The package contains the weights in float16 (loaded in
float32), and neither images of the dataset nor code.
"""

from mobilevit_hf.cli.process import run_and_exit

# isort: split

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from mobilevit_hf.hub import CardOptions
from mobilevit_hf.hub.contents import CARD, CONFIG, EVAL_RESULTS, PROCESSOR, WEIGHTS, gather
from mobilevit_hf.hub.metadata import EVALUATIONS, PUBLISHED_FILES
from mobilevit_hf.io import move_into_place, temporary_folder
from mobilevit_hf.model_sources import ASSETS

MAX_BYTES = 4_000_000  # size limit of a built-in model, all files together

# Text of a detector's card on the Hub, where its code is next to the weights → text in the package.
CARD_REPLACEMENTS = {
    "With `transformers`; `trust_remote_code` loads the detector's code from this repository:": (
        "With `transformers`; importing `mobilevit_hf` registers the detector:"
    ),
    "```python\nfrom transformers import pipeline\n": (
        "```python\nimport mobilevit_hf  # noqa: F401\nfrom transformers import pipeline\n"
    ),
    ", trust_remote_code=True": "",
}


def save_float16(source: Path, target: Path) -> None:
    """Save weights in float16; integer tensors are kept.

    Raises:
        ValueError: If a value exceeds the range of float16.
    """
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(source).items()}
    if overflowing := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(
            f"{source}: got values of {overflowing[0]} beyond the range of float16. Check the training run."
        )
    target.write_bytes(save(tensors, {"format": "pt"}))


def adapt_card(card: str) -> str:
    """Return a detector's card for the package, which contains the detector's code.

    Raises:
        ValueError: If the card's template has changed.
    """
    for text, replacement in CARD_REPLACEMENTS.items():
        if text not in card:
            raise ValueError(f"{CARD}: expected {text!r}. Update CARD_REPLACEMENTS to the card's template.")
        card = card.replace(text, replacement)
    return card


def replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by name to a folder atomically, replacing an existing folder."""
    with temporary_folder(folder.parent) as scratch:
        new = scratch / "new"
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        move_into_place(new, folder)


def make_builtin(run: Path, folder: Path, card_options: CardOptions) -> None:
    """Write the files of a built-in model.

    Args:
        run: Output directory of the training run.
        folder: Folder to write or replace.
        card_options: Model card metadata in addition to the recorded one.

    Raises:
        ValueError: If the run can't be published, or the model is too large.
    """
    with tempfile.TemporaryDirectory() as name:
        staging = Path(name) / run.name
        staging.mkdir()
        kept = [run / name for name in (CONFIG, PROCESSOR, *PUBLISHED_FILES)]
        for path in (*filter(Path.is_file, kept), *run.glob(EVALUATIONS)):
            shutil.copy(path, staging)
        save_float16(run / WEIGHTS, staging / WEIGHTS)
        # The folder in a checkout, so that code of the card runs there.
        contents = gather(staging, f"mobilevit_hf/assets/{folder.name}", card_options)
        files = {name: contents.read(name) for name in contents.files if not name.startswith(EVAL_RESULTS)}
        # The demo's static page quotes the test metric.
        files |= {path.name: path.read_bytes() for path in staging.glob(EVALUATIONS)}
    if any(name.endswith(".py") for name in files):
        files[CARD] = adapt_card(files[CARD].decode()).encode()
    files = {name: data for name, data in files.items() if not name.endswith(".py")}
    for name in (CONFIG, PROCESSOR):
        values = json.loads(files[name])
        values.pop("auto_map", None)
        files[name] = (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    if (size := sum(map(len, files.values()))) > MAX_BYTES:
        raise ValueError(f"{run}: got {size} bytes, expected at most {MAX_BYTES}. Train a smaller variant.")
    replace_folder(folder, files)
    print(f"{folder}: {', '.join(files)}; {size / 1e6:.2f} MB, the card is {CARD}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--license", required=True, help="license id of the weights on the Hub")
    parser.add_argument("--dataset", action="append", default=[], help="Hub id of the dataset")
    parser.add_argument("--description", help="description in the model card")
    args = parser.parse_args()
    card_options = CardOptions(
        license=args.license,
        datasets=tuple(args.dataset),
        language="en",
        description=args.description,
        images=False,
    )
    make_builtin(args.run, ASSETS / args.name, card_options)


if __name__ == "__main__":
    run_and_exit(main)
