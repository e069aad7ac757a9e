"""`mobilevit publish`: publish a model on the Hub."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ..model_sources import builtin_models, read_task, resolve_model
from ..tasks import EXPORTABLE_TASKS
from . import console

if TYPE_CHECKING:
    from ..demo.static_page import StaticPage
    from ..hub import Publication

card_option = partial(typer.Option, rich_help_panel="Model card")
repository_option = partial(typer.Option, rich_help_panel="Repository")
log_note = partial(console.log, "note")
# Source code of this package in a Space.
SOURCE = "mobilevit_hf/"


def publish(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Output directory of `mobilevit train`, or a saved model with its image processor."
        ),
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Hub repository id, such as user/model.")],
    license: Annotated[
        str | None, card_option(help="License id, such as apache-2.0. Default: license of the initial checkpoint.")
    ] = None,
    license_name: Annotated[str | None, card_option(help="License name, with --license other.")] = None,
    license_link: Annotated[str | None, card_option(help="License URL, with --license other.")] = None,
    dataset: Annotated[
        list[str] | None, card_option(metavar="ID", help="Hub id of a training dataset. Can be repeated.")
    ] = None,
    base_model: Annotated[
        str | None, card_option(metavar="ID", help="Hub id of the base model. Default: recorded by training.")
    ] = None,
    language: Annotated[str | None, card_option(help="Language code of the class names, such as en.")] = None,
    tag: Annotated[list[str] | None, card_option(metavar="TAG", help="Further tag. Can be repeated.")] = None,
    description: Annotated[str | None, card_option(help="Description of the model, in Markdown.")] = None,
    intended_use: Annotated[str | None, card_option(help="Intended and out-of-scope use, in Markdown.")] = None,
    images: Annotated[bool, card_option("--images/--no-images", help="Publish example images of the dataset.")] = True,
    overwrite_card: Annotated[
        bool, card_option("--overwrite-card", help="Overwrite a handwritten card on the Hub.")
    ] = False,
    private: Annotated[bool, repository_option("--private", help="Create a new repository as private.")] = False,
    revision: Annotated[
        str | None, repository_option(metavar="BRANCH", help="Branch, created if it does not exist. Default: main.")
    ] = None,
    space: Annotated[
        str | None,
        repository_option(metavar="ID", help="Also publish a demo of the model as this Space."),
    ] = None,
    static: Annotated[
        bool | None,
        repository_option(
            "--static/--gradio",
            help="Space with a page that runs in the browser (default), or with an app on the Hub's machines.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, repository_option("--dry-run", help="Print files and card, upload nothing.")] = False,
) -> None:
    """Publish a model on the Hub.

    The model card is generated from the recorded training, evaluation and export results. Unchanged files are not
    uploaded again, and a handwritten card is kept.
    """
    from ..hub import CardOptions, publish_space
    from ..hub import publish as publish_folder

    card_options = CardOptions(
        license=license,
        license_name=license_name,
        license_link=license_link,
        base_model=base_model,
        datasets=tuple(dataset or ()),
        language=language,
        tags=tuple(tag or ()),
        description=description,
        intended_use=intended_use,
        images=images,
    )
    if static is not None and not space:
        raise ValueError(f"--{'static' if static else 'gradio'}: got no --space. Pass the id of a Space.")
    page = None
    if str(folder) in builtin_models():
        folder = resolve_model(str(folder))
    if space:  # checked before anything is uploaded
        _check_space(space)
        if revision:
            raise ValueError(
                f"--revision: got {revision}, expected main with --space. Leave out --space or --revision."
            )
        if (folder / "config.json").is_file():  # else publishing fails
            read_task(str(folder), folder, EXPORTABLE_TASKS)
            page = _prepare_page(folder) if static in (None, True) else None
    publication = publish_folder(
        folder,
        repo_id,
        card_options=card_options,
        private=private or None,
        revision=revision,
        dry_run=dry_run,
        overwrite_card=overwrite_card,
        log=log_note,
    )
    _show(publication, dry_run=dry_run)
    if space:
        options: dict[str, Any] = {"private": private or None, "dry_run": dry_run, "log": log_note}
        if page is None:
            _show(publish_space(space, repo_id, **options), dry_run=dry_run)
        else:
            from ..demo.static_space import publish_static_space

            _show(publish_static_space(space, repo_id, page, **options), dry_run=dry_run)


def _prepare_page(folder: Path) -> "StaticPage":
    from ..demo.static_page import prepare_static_page

    with console.messages.status("Exporting the model for the page"):
        return prepare_static_page(str(folder))


def _check_space(space: str) -> None:
    """Raise a ValueError if a Space can't have this id."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(space)
    except HFValidationError as error:
        raise ValueError(
            f"--space: got {space!r}, expected USER/NAME of letters, digits, -, _, . ({error})"
        ) from error


def _show(publication: "Publication", *, dry_run: bool) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, size in _group_source(publication.files).items():
        table.add_row(Text(console.printable(name)), decimal(size))
    table.add_row("Total", decimal(sum(publication.files.values())))
    console.output.print(table)
    if publication.left_out:
        log_note(f"Not published: {', '.join(publication.left_out)}")
    if publication.deleted:
        log_note(f"Deleted files of an earlier version: {', '.join(publication.deleted)}")
    if dry_run:
        console.output.print(Text(f"\n{publication.card}"), soft_wrap=True)
        console.log("dry run", "Nothing was uploaded.")
        return
    if publication.commit is None:
        console.log("done", "Already up to date.", color="green")
    else:
        console.log("done", f"Published as commit {publication.commit[:8]}.", color="green")
    console.output.print(publication.url, soft_wrap=True, highlight=False)


def _group_source(files: dict[str, int]) -> dict[str, int]:
    """Return sizes by name, with this package's source code in one line."""
    source = {name: size for name, size in files.items() if name.startswith(SOURCE)}
    others = {name: size for name, size in files.items() if name not in source}
    return others | ({f"{SOURCE} ({len(source)} files)": sum(source.values())} if source else {})
