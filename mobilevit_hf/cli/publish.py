"""`mobilevit publish`: a model for everybody, on the Hub."""

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ..hub import Given, Publication, publish_space
from ..hub import publish as publish_folder
from ..model_sources import read_task
from . import console

CARD, HUB = "The card", "The repository"
# What a Space has of this package.
SOURCE = "mobilevit_hf/"


def publish(
    folder: Annotated[Path, typer.Argument(help="A training's folder, or a model with its image processor.")],
    repo_id: Annotated[str, typer.Argument(help="Its name on the Hub, such as user/model.")],
    license: Annotated[
        str | None, typer.Option(help="Such as apache-2.0. Default: that of the start weights.", rich_help_panel=CARD)
    ] = None,
    license_name: Annotated[
        str | None, typer.Option(help="The name, with --license other.", rich_help_panel=CARD)
    ] = None,
    license_link: Annotated[str | None, typer.Option(help="To its text.", rich_help_panel=CARD)] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="What it was trained on, by its Hub id; again for more.", rich_help_panel=CARD
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="ID", help="What it was made from, by its Hub id.", rich_help_panel=CARD)
    ] = None,
    language: Annotated[str | None, typer.Option(help="Of the classes' names.", rich_help_panel=CARD)] = None,
    tag: Annotated[list[str] | None, typer.Option(help="To find it by; again for more.", rich_help_panel=CARD)] = None,
    description: Annotated[str | None, typer.Option(help="What it is for.", rich_help_panel=CARD)] = None,
    intended_use: Annotated[str | None, typer.Option(help="What to use it for, or not.", rich_help_panel=CARD)] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Show images of the data.", rich_help_panel=CARD)
    ] = True,
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Replace a card written by hand.", rich_help_panel=CARD)
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is for your eyes only.", rich_help_panel=HUB)
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch. Default: main.", rich_help_panel=HUB)
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Also make this Space, a page to try the model on.", rich_help_panel=HUB),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files and card, and send nothing.", rich_help_panel=HUB)
    ] = False,
) -> None:
    """Publish a model on the Hub.

    Its card says what is known of it. It is one commit; what is there already is not sent again. A card written by
    hand stays.
    """
    given = Given(
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
    if space:
        _check_space(folder, revision)
    publication = publish_folder(
        folder,
        repo_id,
        given=given,
        private=private or None,
        revision=revision,
        dry_run=dry_run,
        overwrite_card=overwrite_card,
        say=lambda text: console.say("note", text),
    )
    _show(publication, dry_run=dry_run)
    if space:
        page = publish_space(
            space, repo_id, private=private or None, dry_run=dry_run, say=lambda text: console.say("note", text)
        )
        _show(page, dry_run=dry_run)


def _check_space(folder: Path, revision: str | None) -> None:
    """See that a page can show the model, before anything is sent."""
    if (folder / "config.json").is_file():  # if not, publishing says so
        read_task(str(folder), folder)
    if revision:
        raise ValueError(f"--revision {revision}: a Space shows the main branch. Leave out --space, or --revision.")


def _show(publication: Publication, *, dry_run: bool) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, size in _group(publication.files).items():
        table.add_row(Text(console.printable(name)), decimal(size))
    table.add_row("", decimal(sum(publication.files.values())))
    console.output.print(table)
    if publication.left_out:
        console.say("note", f"These stay here: {', '.join(publication.left_out)}")
    if publication.deleted:
        console.say("note", f"Deleted there, as they were of another version: {', '.join(publication.deleted)}")
    if dry_run:
        console.output.print(Text(f"\n{publication.card}"), soft_wrap=True)
        console.say("dry run", "Nothing was sent.")
    elif publication.commit is None:
        console.say("done", "All of it is there already.", color="green")
    else:
        console.say("done", f"Published as {publication.commit[:8]}.", color="green")
    console.output.print(publication.url, soft_wrap=True, highlight=False)


def _group(files: dict[str, int]) -> dict[str, int]:
    """Sizes by name, with this package's source in one line."""
    source = [size for name, size in files.items() if name.startswith(SOURCE)]
    rest = {name: size for name, size in files.items() if not name.startswith(SOURCE)}
    return rest | ({f"{SOURCE} ({len(source)} files)": sum(source)} if source else {})
