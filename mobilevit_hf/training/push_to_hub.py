"""Publication of the trained model on the Hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..hub import CardOptions, HubError, check_access, publish
from ..hub.licenses import License, check_listed, describe_initial_checkpoint, find_license
from ..io import quote_words
from .arguments import TrainArguments


def check_publication(arguments: TrainArguments, log: Callable[[str], Any]) -> str:
    """Check license and write access before training, and return the full repository id; `arguments.model` is set.

    Raises:
        ValueError: If the license is unknown, the repository id is invalid, or an existing repository is public
            although a private one is requested.
        HubError: If the Hub denies write access.
    """
    if warning := check_listed(arguments.license):
        log(warning)
    license = License(arguments.license, arguments.license_name, arguments.license_link) if arguments.license else None
    find_license(license, None, describe_initial_checkpoint(str(arguments.model)))
    name = arguments.hub_model_id or Path(str(arguments.output_dir)).absolute().name
    return check_access(name, private=arguments.hub_private_repo, log=log)


def publish_result(arguments: TrainArguments, repo_id: str, log: Callable[[str], Any]) -> None:
    """Publish the output directory.

    Raises:
        ValueError: If publication fails; the error states the command to repeat it.
    """
    folder, private, revision = str(arguments.output_dir), arguments.hub_private_repo, arguments.hub_revision
    license = {name: getattr(arguments, name) for name in ("license", "license_name", "license_link")}
    options = CardOptions(**license, images=arguments.hub_images)
    try:
        url = publish(folder, repo_id, card_options=options, private=private or None, revision=revision, log=log).url
    except (ValueError, HubError) as error:
        values = license | {"revision": revision}
        words = [word for name, value in values.items() if value for word in (f"--{name.replace('_', '-')}", value)]
        words += ["--private"] * private + ["--no-images"] * (not options.images)
        raise ValueError(
            f"{error} Training is complete and {folder} is intact. To publish it: "
            f"{quote_words('mobilevit', 'publish', folder, repo_id, *words)}"
        ) from error
    log(f"Published: {url}")
