"""Put a trained model into the package, as one of those that are there without a download.

python scripts/make_builtin.py RUN NAME --license mit [--dataset HUB_ID] [--description TEXT]

RUN is a folder of `mobilevit train`, with figures of the test split beside the model if `mobilevit evaluate RUN DATA
--split test --json > RUN/evaluation-test.json` put them there. The package holds the weights in half the bits (they
are loaded in float32), no images of the data and no code.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from mobilevit_hf.cli import console
from mobilevit_hf.hub import CardOptions
from mobilevit_hf.hub.contents import CARD, CONFIG, EVAL_RESULTS, PROCESSOR, WEIGHTS, gather
from mobilevit_hf.hub.metadata import EVALUATIONS, PUBLISHED_FILES
from mobilevit_hf.io import TEMP_PREFIX
from mobilevit_hf.model_sources import ASSETS

MAX_BYTES = 4_000_000  # of all the files of a model

# What the card of a detector says where its code lies beside the weights, and what is true in the package.
WITH_CODE = {
    "With `transformers`; `trust_remote_code` loads the detector's code from this repository:": (
        "With `transformers`; importing `mobilevit_hf` registers the detector:"
    ),
    "```python\nfrom transformers import pipeline\n": (
        "```python\nimport mobilevit_hf  # noqa: F401\nfrom transformers import pipeline\n"
    ),
    ", trust_remote_code=True": "",
}


def halve(source: Path, target: Path) -> None:
    """Write weights in float16; whole numbers stay as they are.

    Raises:
        ValueError: If a number is too large for it.
    """
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(source).items()}
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{source}: {bad[0]} does not fit into float16.")
    target.write_bytes(save(tensors, {"format": "pt"}))


def describe_without_code(card: str) -> str:
    """A detector's card as it is where the detector's code is this package's."""
    for said, true in WITH_CODE.items():
        assert said in card
        card = card.replace(said, true)
    return card


def replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, by name, as a folder in the place of one that may be there: all of them or none."""
    with tempfile.TemporaryDirectory(prefix=TEMP_PREFIX, dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        if folder.exists():
            folder.rename(new.with_name("old"))
        new.rename(folder)


def make_builtin(run: Path, folder: Path, given: CardOptions) -> None:
    """Write the files of a built-in model.

    Args:
        run: Of the training.
        folder: To write; what is there is replaced.
        given: What the card says beside what was recorded.

    Raises:
        ValueError: If the run can't be published, or is too large.
    """
    with tempfile.TemporaryDirectory() as name:
        staging = Path(name) / run.name
        staging.mkdir()
        kept = [run / name for name in (CONFIG, PROCESSOR, *PUBLISHED_FILES)]
        for path in (*filter(Path.is_file, kept), *run.glob(EVALUATIONS)):
            shutil.copy(path, staging)
        halve(run / WEIGHTS, staging / WEIGHTS)
        # Where the model lies in a checkout: what the card says can be pasted there.
        contents = gather(staging, f"mobilevit_hf/assets/{folder.name}", given)
        files = {name: contents.read(name) for name in contents.files if not name.startswith(EVAL_RESULTS)}
    if any(name.endswith(".py") for name in files):
        files[CARD] = describe_without_code(files[CARD].decode()).encode()
    files = {name: data for name, data in files.items() if not name.endswith(".py")}
    for name in (CONFIG, PROCESSOR):
        values = json.loads(files[name])
        values.pop("auto_map", None)
        files[name] = (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    if (size := sum(map(len, files.values()))) > MAX_BYTES:
        raise ValueError(f"{run}: got {size} bytes, expected {MAX_BYTES} at most.")
    replace_folder(folder, files)
    print(f"{folder}: {', '.join(files)}; {size / 1e6:.2f} MB, the card is {CARD}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--license", required=True, help="of the weights, as the Hub names it")
    parser.add_argument("--dataset", action="append", default=[], help="a Hub id")
    parser.add_argument("--description", help="what the model is for")
    args = parser.parse_args()
    given = CardOptions(
        license=args.license,
        datasets=tuple(args.dataset),
        language="en",
        description=args.description,
        images=False,
    )
    try:
        make_builtin(args.run, ASSETS / args.name, given)
    except (ValueError, OSError) as error:
        console.log("error", str(error), color="red")
        sys.exit(console.EXIT_ERROR)


if __name__ == "__main__":
    main()
