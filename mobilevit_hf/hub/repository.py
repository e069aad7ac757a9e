"""Publish a model folder to a Hub repository in one commit."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..redaction import redact
from .card import is_generated
from .client import Hub, HubError
from .contents import CARD, EVAL_RESULTS, EXPORTS, INDEX, SHARD, WEIGHTS, Contents, gather
from .licenses import check_listed
from .metadata import PUBLISHED_FILES, CardOptions

# Attempts if other commits to the branch arrive at the same time.
MAX_CONFLICTS = 4
CONFLICT_STATUSES = (409, 412)


@dataclass(frozen=True)
class Publication:
    """A published model, or the result of a dry run.

    Attributes:
        url: URL of the repository.
        files: Sizes of the published files in bytes, by path.
        left_out: Names in the folder that are not published.
        card: Model card.
        commit: Commit hash; None if nothing changed, or for a dry run.
        deleted: Paths of obsolete files that the commit deleted.
    """

    url: str
    files: dict[str, int]
    left_out: tuple[str, ...]
    card: str
    commit: str | None = None
    deleted: tuple[str, ...] = ()


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    card_options: CardOptions | None = None,
    private: bool | None = None,
    revision: str | None = None,
    dry_run: bool = False,
    overwrite_card: bool = False,
    token: str | None = None,
    log: Callable[[str], Any] = print,
) -> Publication:
    """Publish a model with a model card generated from its records.

    The folder is not modified. Unchanged files are not uploaded; without changes there is no commit. Handwritten cards
    are kept: a card in the folder is published unchanged, a card on the Hub is not overwritten.

    Args:
        folder: Output folder of a training, or a model with its image processor.
        repo_id: Repository id, with or without the user or organization.
        card_options: Model card metadata from the author.
        private: Create a new repository as private. Default: the owner's setting.
        revision: Branch, created from main if it does not exist. Default: main.
        dry_run: Only check the folder and generate the card; needs neither token nor network.
        overwrite_card: Overwrite a handwritten card on the Hub.
        token: User access token. Default: the one of `hf auth login` or HF_TOKEN.
        log: Called with one line per decision or retry.

    Raises:
        ValueError: If the folder can't be published; lists all reasons in one line.
        HubError: If a request to the Hub fails. Calling again resumes the upload.
    """
    validate_repo_id(repo_id)
    folder, card_options = Path(folder), card_options or CardOptions()
    if "/" not in repo_id and not dry_run:
        repo_id = Hub(token, log).resolve_repo_id(repo_id)
    contents = gather(folder, repo_id, card_options)  # errors in the folder before errors of the Hub
    if warning := check_listed(card_options.license):
        log(warning)
    if dry_run:
        return make_publication(contents, page_url(repo_id))
    hub = Hub(token, log)
    hub.resolve_repo_id(repo_id)
    return ModelTarget(hub, repo_id, revision, overwrite_card).publish(contents, private)


def make_publication(
    contents: Contents, url: str, commit: str | None = None, deleted: Sequence[str] = ()
) -> Publication:
    """Return the `Publication` of a repository's contents."""
    return Publication(url, contents.sizes, contents.left_out, contents.card, commit, tuple(deleted))


def page_url(repo_id: str, repo_type: str = "model") -> str:
    """Return the URL of a repository."""
    return f"{redact(constants.ENDPOINT)}/{constants.REPO_TYPES_URL_PREFIXES.get(repo_type, '')}{repo_id}"


def check_access(
    repo_id: str, *, private: bool | None = None, token: str | None = None, log: Callable[[str], Any] = print
) -> str:
    """Check that a repository can be published to, before there is a model; arguments as for `publish`.

    Returns:
        Full repository id.

    Raises:
        ValueError: If the id is invalid, or the repository is public despite `private`.
        HubError: If the token may not write to it.
    """
    validate_repo_id(repo_id)
    hub = Hub(token, log)
    repo_id = hub.resolve_repo_id(repo_id)
    ModelTarget(hub, repo_id).exists(private)
    return repo_id


class Target:
    """A branch of a Hub repository, by default main. Subclasses select the files to upload and to delete."""

    repo_type: str
    space_sdk: str | None = None
    message: str

    def __init__(self, hub: Hub, repo_id: str, branch: str | None = None) -> None:
        self.hub, self.repo_id, self.branch = hub, repo_id, branch or constants.DEFAULT_REVISION
        self.url = page_url(repo_id, self.repo_type)

    def select(self, contents: Contents, existing: Iterable[str]) -> list[str]:
        """Return the files to upload, given the files in the branch."""
        raise NotImplementedError

    def obsolete(self, contents: Contents, existing: Iterable[str]) -> list[str]:
        """Return the files to delete from the branch; called after `select`."""
        raise NotImplementedError

    def exists(self, private: bool | None) -> bool:
        """Return whether the repository exists.

        Raises:
            ValueError: If it is public despite `private`.
        """
        try:
            info = self.hub.info(self.repo_id, self.repo_type, None, RepositoryNotFoundError)
        except RepositoryNotFoundError:
            return False
        if private and not info.private:
            raise ValueError(
                f"{self.repo_id}: got a public repository, expected a private one; nothing was uploaded. Make it "
                f"private ({self.url}/settings), or leave out private."
            )
        return True

    def publish(self, contents: Contents, private: bool | None) -> Publication:
        """Commit the contents to the branch; a missing repository or branch is created.

        Retried if another commit arrives at the same time.

        Raises:
            ValueError: If the repository is public despite `private`.
            HubError: If a request fails.
        """
        self._create(private)
        for attempt in range(MAX_CONFLICTS):
            info = self.hub.info(self.repo_id, self.repo_type, self.branch)
            self.sha, existing = info.sha, {file.rfilename for file in info.siblings or []}
            selected, obsolete = self.select(contents, existing), self.obsolete(contents, existing)
            try:
                commit = self._commit(contents, selected, obsolete)
            except HubError as error:
                # Another commit, or this one if its response was lost: then the next commit has no changes.
                if error.status not in CONFLICT_STATUSES or attempt == MAX_CONFLICTS - 1:
                    raise
            else:
                changed = attempt > 0 or commit.oid != self.sha  # without changes create_commit returns the head
                return make_publication(contents, self.url, commit.oid if changed else None, obsolete)
        raise AssertionError

    def read(self, name: str) -> str:
        """Return a text file of the branch."""
        return self.hub.read(self.repo_id, name, self.sha, self.repo_type)

    def _create(self, private: bool | None) -> None:
        api, name, kind, sdk = self.hub.api, self.repo_id, self.repo_type, self.space_sdk
        if not self.exists(private):
            self.hub.call(
                lambda: api.create_repo(name, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk), name
            )
        try:
            self.hub.info(name, kind, self.branch, RevisionNotFoundError)
        except RevisionNotFoundError:
            self.hub.call(lambda: api.create_branch(name, branch=self.branch, exist_ok=True, repo_type=kind), name)

    def _commit(self, contents: Contents, names: list[str], obsolete: list[str]) -> CommitInfo:
        """Create a commit; huggingface_hub leaves out unchanged files."""

        def create_commit() -> CommitInfo:
            return self.hub.api.create_commit(
                self.repo_id,
                [
                    *(CommitOperationDelete(name) for name in obsolete),
                    *(CommitOperationAdd(name, contents.files[name]) for name in names),
                ],
                repo_type=self.repo_type,
                commit_message=self.message,
                revision=self.branch,
                parent_commit=self.sha,
            )

        return self.hub.call(create_commit, self.repo_id)


class ModelTarget(Target):
    """A branch of a model repository; a handwritten card is kept unless `overwrite_card` is set."""

    repo_type, message = "model", "Publish the model"

    def __init__(self, hub: Hub, repo_id: str, branch: str | None = None, overwrite_card: bool = False) -> None:
        super().__init__(hub, repo_id, branch)
        self.overwrite_card = overwrite_card

    def select(self, contents: Contents, existing: Iterable[str]) -> list[str]:
        """Return all files, without the card if the one in the branch is handwritten."""
        text = self.read(CARD) if CARD in existing else None
        self.replaces_card = text is None or is_generated(text) or text == contents.card
        if self.replaces_card:
            return list(contents.files)
        if self.overwrite_card:
            self.hub.log(f"The card of {self.repo_id} is handwritten and will be overwritten.")
            return list(contents.files)
        self.hub.log(f"The card of {self.repo_id} is handwritten and is kept. To overwrite it: --overwrite-card")
        return [name for name in contents.files if name != CARD]

    def obsolete(self, contents: Contents, existing: Iterable[str]) -> list[str]:
        """Return the weights and figures of an earlier version; exports and results of others are only reported."""
        others = sorted(name for name in existing if name not in contents.files)
        if doubtful := [name for name in others if name.split("/")[0] in (*EXPORTS, EVAL_RESULTS)]:
            self.hub.log(
                f"{self.repo_id} has files that are not in the folder and may belong to other weights: "
                f"{', '.join(doubtful)}"
            )
        weights = [name for name in others if name in (WEIGHTS, INDEX) or SHARD.fullmatch(name)]
        return weights + [name for name in others if name in PUBLISHED_FILES and self.replaces_card]
