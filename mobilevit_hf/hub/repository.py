"""A folder → a repository on the Hub, in one commit that touches nobody else's work."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelInfo, SpaceInfo, constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from .card import is_ours
from .client import Hub, HubError
from .contents import CARD, EVAL_RESULTS, EXPORTS, INDEX, SHARD, WEIGHTS, Contents, gather
from .metadata import PUBLISHED_FILES, Given

# How often to begin anew where somebody else commits to the same branch at the same time.
RACES = 4
CHANGED_MEANWHILE = (409, 412)


@dataclass(frozen=True)
class Publication:
    """What was published, or is to be.

    Attributes:
        url: Of the repository.
        commit: The commit's sha; None if nothing was different, or for a dry run.
        files: The repository's files that were made from the folder, with their sizes in bytes.
        deleted: Files in it that this replaces, now gone.
        left_out: Names in the folder that stay here.
        card: The model card.
    """

    url: str
    commit: str | None
    files: dict[str, int]
    deleted: tuple[str, ...]
    left_out: tuple[str, ...]
    card: str


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    given: Given | None = None,
    private: bool | None = None,
    revision: str | None = None,
    dry_run: bool = False,
    overwrite_card: bool = False,
    token: str | None = None,
    say: Callable[[str], Any] = print,
) -> Publication:
    """Publish a model with a card that says what is known of it.

    The folder is only read. What is the same already is not sent, and if all is, there is no commit. A card written
    by hand stays: one in the folder is published as it is, one on the Hub is kept.

    Args:
        folder: Of a training, or of a model with its image processor.
        repo_id: Its name on the Hub, with or without the user or organization in front.
        given: What its maker says about it.
        private: Whether a new repository is for its owner's eyes only. Default: the owner's setting.
        revision: The branch; made from main if it isn't there. Default: main.
        dry_run: Send nothing and ask nobody: needs neither token nor Hub.
        overwrite_card: Replace a card on the Hub that was written by hand.
        token: Of the Hub. Default: that of `hf auth login` or HF_TOKEN.
        say: Told in a line what was decided and what there is to wait for.

    Raises:
        ValueError: If the folder can't be published as it is; all the reasons in one line.
        HubError: If the Hub can't be reached or refuses; the same call goes on where this one ended.
    """
    validate_repo_id(repo_id)
    folder, given = Path(folder), given or Given()
    if dry_run:
        contents = gather(folder, repo_id, given)
        return publication_of(contents, page_url(repo_id), None, ())
    if "/" not in repo_id:
        repo_id = Hub(token, say).find_repo_id(repo_id)
    contents = gather(folder, repo_id, given)  # first of all: what is wrong here can be mended without the Hub
    hub = Hub(token, say)
    hub.find_repo_id(repo_id)
    target = ModelTarget(hub, repo_id, revision or constants.DEFAULT_REVISION, overwrite_card)
    target.prepare(private)
    commit, deleted = target.update(contents)
    return publication_of(contents, target.url, commit, deleted)


def publication_of(contents: Contents, url: str, commit: str | None, deleted: tuple[str, ...]) -> Publication:
    """What was published at an address; see `Publication`."""
    return Publication(url, commit, contents.sizes, deleted, contents.left_out, contents.card)


def page_url(repo_id: str, repo_type: str = "model") -> str:
    """The address of a repository's page."""
    return f"{constants.ENDPOINT}/{constants.REPO_TYPES_URL_PREFIXES.get(repo_type, '')}{repo_id}"


def check_access(
    repo_id: str, *, private: bool | None = None, token: str | None = None, say: Callable[[str], Any] = print
) -> str:
    """See that a repository can be published to, before there is something to publish; arguments as for `publish`.

    Returns:
        Its whole id.

    Raises:
        ValueError: If there can be no such repository, or it is public and was to be private.
        HubError: If the token may not write to it.
    """
    validate_repo_id(repo_id)
    hub = Hub(token, say)
    repo_id = hub.find_repo_id(repo_id)
    ModelTarget(hub, repo_id, constants.DEFAULT_REVISION).is_there(private)
    return repo_id


class Target:
    """A branch of a repository; what kind of one, and what may be replaced there, is for the subclasses.

    Args:
        hub: Where it is.
        repo_id: Its whole id.
        branch: The branch.

    Attributes:
        repo_type: As huggingface_hub calls it.
        new: What huggingface_hub needs to know to make one.
        message: Of the commit.
    """

    repo_type: str
    new: dict[str, Any]
    message: str

    def __init__(self, hub: Hub, repo_id: str, branch: str) -> None:
        self.hub, self.repo_id, self.branch = hub, repo_id, branch

    def choose(self, contents: Contents, head: dict[str, Any]) -> list[str]:
        """The files to send, where there are some already; those that are the same are left out later."""
        raise NotImplementedError

    def obsolete(self, contents: Contents, head: dict[str, Any]) -> list[str]:
        """The files to delete."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The address of its page."""
        return page_url(self.repo_id, self.repo_type)

    def is_there(self, private: bool | None) -> bool:
        """Whether the repository is.

        Raises:
            ValueError: If it is public, and was to be private.
        """
        try:
            info = self._info(RepositoryNotFoundError)
        except RepositoryNotFoundError:
            return False
        if private and not info.private:
            raise ValueError(
                f"{self.repo_id} is public, and nothing was sent. Make it private on its page ({self.url}/settings) "
                "first, or don't ask for a private one."
            )
        return True

    def prepare(self, private: bool | None) -> None:
        """Have the repository and the branch there.

        Raises:
            ValueError: If the repository is public, and was to be private.
            HubError: If they can't be made.
        """
        api, kind = self.hub.api, {"repo_type": self.repo_type}
        if not self.is_there(private):
            self._call(lambda: api.create_repo(self.repo_id, private=private, exist_ok=True, **kind, **self.new))
        try:
            self._info(RevisionNotFoundError, revision=self.branch)
        except RevisionNotFoundError:
            self._call(lambda: api.create_branch(self.repo_id, branch=self.branch, exist_ok=True, **kind))

    def update(self, contents: Contents) -> tuple[str | None, tuple[str, ...]]:
        """Bring the branch to what it is to hold, in one commit.

        Returns:
            The commit's sha, None if there was nothing to do; the files that were deleted.

        Raises:
            HubError: If it can't be done.
        """
        sent = False
        for _ in range(RACES):
            head = self._head()
            files = self.choose(contents, head)
            changes = [name for name in files if not is_same(contents.read(name), head.get(name))]
            obsolete = self.obsolete(contents, head)
            if not changes and not obsolete:
                return self.sha if sent else None, ()
            operations = [CommitOperationDelete(name) for name in obsolete]
            operations += [CommitOperationAdd(name, contents.files[name]) for name in changes]
            try:
                commit = self._call(
                    lambda operations=operations: self.hub.api.create_commit(
                        self.repo_id,
                        operations,
                        repo_type=self.repo_type,
                        commit_message=self.message,
                        revision=self.branch,
                        parent_commit=self.sha,
                    )
                )
                return commit.oid, tuple(obsolete)
            except HubError as error:
                # Somebody else's commit, or this one, if the Hub's answer to it did not arrive.
                if error.status not in CHANGED_MEANWHILE:
                    raise
                last, sent = error, True
        raise last

    def _head(self) -> dict[str, Any]:
        """The files that are there now, by path; also remembers the commit."""
        info = self._info(revision=self.branch, files_metadata=True)
        self.sha = info.sha
        return {file.rfilename: file for file in info.siblings or []}

    def read(self, name: str) -> str:
        """A text file that is there now."""
        return self.hub.read(self.repo_id, name, self.sha, self.repo_type)

    def _info(self, *expected: type[Exception], **options: Any) -> ModelInfo | SpaceInfo:
        return self.hub.info(self.repo_id, *expected, repo_type=self.repo_type, **options)

    def _call(self, step: Callable[[], Any]) -> Any:
        return self.hub.call(step, self.repo_id)


class ModelTarget(Target):
    """A branch of a model's repository.

    Args:
        hub, repo_id, branch: As for `Target`.
        overwrite_card: Replace a card that was written by hand.
    """

    repo_type, new, message = "model", {}, "Publish the model"

    def __init__(self, hub: Hub, repo_id: str, branch: str, overwrite_card: bool = False) -> None:
        super().__init__(hub, repo_id, branch)
        self.overwrite_card = overwrite_card

    def choose(self, contents: Contents, head: dict[str, Any]) -> list[str]:
        """All files, but the card if there is one that somebody wrote."""
        self.card_is_ours = CARD not in head or is_same(contents.read(CARD), head[CARD]) or is_ours(self.read(CARD))
        if self.card_is_ours:
            return list(contents.files)
        if self.overwrite_card:
            self.hub.say(f"The card of {self.repo_id} was not written by this command, and is replaced.")
            return list(contents.files)
        self.hub.say(
            f"The card of {self.repo_id} was not written by this command, and is kept; --overwrite-card replaces it."
        )
        return [name for name in contents.files if name != CARD]

    def obsolete(self, contents: Contents, head: dict[str, Any]) -> list[str]:
        """Files there that would be taken for this model's, and are not: other weights, and figures beside our card.

        Of exports and results nobody knows who made them: they are named only.
        """
        gone = [name for name in head if name not in contents.files]
        if doubtful := [name for name in gone if name.split("/")[0] in (*EXPORTS, EVAL_RESULTS)]:
            self.hub.say(
                f"{self.repo_id} has files that are not in the folder and may be of other weights: "
                f"{', '.join(doubtful)}"
            )
        weights = [name for name in gone if name in (WEIGHTS, INDEX) or SHARD.fullmatch(name)]
        return weights + [name for name in gone if name in PUBLISHED_FILES and self.card_is_ours]


def is_same(data: bytes, file: Any) -> bool:
    """Whether a file on the Hub has this content, by the names that git and LFS have for it."""
    if file is None:
        return False
    if file.lfs:
        return hashlib.sha256(data).hexdigest() == file.lfs.sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == file.blob_id
