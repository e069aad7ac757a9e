"""The result of a training, published when it has ended."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..hub import Given, HubError, check_access, publish
from ..hub.licenses import License, describe_start, find_license
from .arguments import TrainArguments


def find_repository(arguments: TrainArguments, say: Callable[[str], Any]) -> str:
    """The repository's whole id, before the training: what would keep its result from the Hub is known by then.

    Args:
        arguments: With the model to start from.
        say: Told in a line what there is to wait for.

    Raises:
        ValueError: If nobody knows the license, the name can't be one, or a repository that is to be private is not.
        HubError: If the Hub does not take it.
    """
    stated = License(arguments.license, arguments.license_name, arguments.license_link) if arguments.license else None
    find_license(stated, None, describe_start(arguments.model))
    name = arguments.hub_model_id or Path(arguments.output_dir).absolute().name
    return check_access(name, private=arguments.hub_private_repo, say=say)


def publish_result(arguments: TrainArguments, repo_id: str, say: Callable[[str], Any]) -> None:
    """Publish the folder of a training.

    Args:
        arguments: Its own.
        repo_id: Where, as `find_repository` has it.
        say: Told in a line what was decided.

    Raises:
        ValueError: If it can't be published; the result is whole.
    """
    given = Given(
        license=arguments.license,
        license_name=arguments.license_name,
        license_link=arguments.license_link,
        images=arguments.hub_images,
    )
    folder, private, revision = arguments.output_dir, arguments.hub_private_repo, arguments.hub_revision
    try:
        done = publish(folder, repo_id, given=given, private=private or None, revision=revision, say=say)
    except (ValueError, HubError) as error:
        options = {"license": given.license, "license-name": given.license_name, "license-link": given.license_link}
        options |= {"revision": revision}
        words = [word for name, value in options.items() if value for word in (f"--{name}", value)]
        words += ["--private"] * private + ["--no-images"] * (not given.images)
        raise ValueError(
            f"{error} The training is done, and its result is whole. To publish it: "
            f"{shlex.join(['mobilevit', 'publish', folder, repo_id, *words])}"
        ) from error
    say(f"Published: {done.url}")
