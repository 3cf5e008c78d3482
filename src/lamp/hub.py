"""Repositories of the Hugging Face hub: their names, and copies of their files on this machine.

Datasets, vision-language models, the authors' release and our own checkpoints all come through `fetch`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lamp.errors import DataError, LampError, MissingDependencyError

ANSWER_S = 10.0
"""How long the hub may take to answer. [s]"""
FOLDERS = ("checkpoints/", "data/", "outputs/", "runs/")
"""Where our documents put things: a folder that is missing there is no repository of the hub's."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")

RepoKind = Literal["model", "dataset"]


@dataclass(frozen=True, kw_only=True)
class HubId:
    """A repository: OWNER/NAME, and at which branch, tag or commit."""

    name: str
    revision: str | None = None
    """None: the newest."""

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> HubId | None:
        """Reads OWNER/NAME or OWNER/NAME@REVISION; None where the text is no hub id, such as a path of more parts.

        Raises:
            DataError: A revision stands after the name, and another one is given.
        """
        name, _, own = text.partition("@")
        if not _NAME.fullmatch(name) or text.endswith("@") or text.startswith(FOLDERS):
            return None
        if own and revision not in (None, own):
            raise DataError(f"{text} names revision {own}, and {revision} is given beside it; expected one of them.")
        return cls(name=name, revision=own or revision)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """What is wanted of a repository, and how to ask for it."""

    kind: RepoKind = "model"
    patterns: tuple[str, ...] | None = None
    """Which files; None: all."""
    instead: str
    """What the user can do where the hub does not give it, for the error."""
    stored_first: bool = False
    """Whether what was copied before is used again without asking whether there is something newer."""


def client(what: str, instead: str) -> Any:
    """The hub's package.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise MissingDependencyError(f"{what} needs huggingface_hub: pip install huggingface_hub. {instead}") from None
    return huggingface_hub


def fetch(hub: HubId, wanted: Fetch, check: Callable[[Sequence[str]], None] | None = None) -> Path:
    """Copies what is not on this machine yet, and returns the folder, whose name is the commit.

    A copy that was interrupted is never returned: it is completed, or the error says that it is not whole.

    Args:
        check: Called with the names of all files of the repository before any of them is copied, and may raise.

    Raises:
        DataError: The hub does not give it, and there is no whole copy of it.
        MissingDependencyError: `huggingface_hub` is not installed.
    """
    client(f"{hub.name} is no folder, and fetching it from the hub", wanted.instead)
    pinned = hub.revision is not None and _COMMIT.fullmatch(hub.revision) is not None
    if (wanted.stored_first or pinned) and (folder := _stored(hub, wanted)) is not None:
        return folder
    # Offline, unknown name, no access, full disk: the hub's client and its transport each have their own exceptions.
    try:
        # A download tries again and again where there is no connection; this says so at once.
        info = _ask(hub, wanted.kind)
    except Exception as error:
        if not _denied(error) and (folder := _stored(hub, wanted)) is not None:
            return folder
        raise unavailable(hub, wanted, error) from error
    names = [file.rfilename for file in getattr(info, "siblings", None) or ()]
    for name in names:
        if name.startswith(("/", "\\")) or ":" in name or {"..", "."} & set(name.replace("\\", "/").split("/")):
            raise DataError(
                f"{hub} has a file named {name[:120]!r}, which leads out of its folder: nothing was copied."
            )
    if check is not None:
        check(names)
    try:
        with _noted(hub, getattr(info, "sha", None), wanted):
            return Path(_download(hub, wanted))
    except LampError:
        raise
    except Exception as error:
        raise unavailable(hub, wanted, error) from error


def _ask(hub: HubId, kind: RepoKind) -> Any:
    import huggingface_hub

    ask = huggingface_hub.dataset_info if kind == "dataset" else huggingface_hub.model_info
    return ask(hub.name, revision=hub.revision, timeout=ANSWER_S)


def _download(hub: HubId, wanted: Fetch, **more: Any) -> str:
    from huggingface_hub import snapshot_download

    patterns = None if wanted.patterns is None else list(wanted.patterns)
    return snapshot_download(hub.name, repo_type=wanted.kind, revision=hub.revision, allow_patterns=patterns, **more)


def _stored(hub: HubId, wanted: Fetch) -> Path | None:
    """The copy that is on this machine; None where there is none, or only a part of one."""
    try:
        folder = Path(_download(hub, wanted, local_files_only=True))
    except Exception:
        return None
    return None if _note_of(hub, folder.name, wanted).exists() else folder


def _note_of(hub: HubId, commit: str, wanted: Fetch) -> Path:
    """A file that is there while a copy is being made, and stays where that is interrupted."""
    from huggingface_hub import constants

    digest = hashlib.sha256(repr((wanted.kind, hub.name, commit, wanted.patterns)).encode()).hexdigest()[:24]
    # Beside the hub's own cache, whose folders other programs list.
    return Path(constants.HF_HUB_CACHE).expanduser().parent / "lamp-unfinished" / digest


@contextmanager
def _noted(hub: HubId, commit: str | None, wanted: Fetch) -> Iterator[None]:
    if commit is None:
        yield
        return
    note = _note_of(hub, commit, wanted)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{wanted.kind} {hub} at {commit} is being copied; delete this only with the copy\n")
    yield
    note.unlink(missing_ok=True)


def _denied(error: Exception) -> bool:
    """Whether the hub was reached and said no, rather than that nothing was heard of it."""
    from huggingface_hub import errors

    return isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.HFValidationError)


def unavailable(hub: HubId, wanted: Fetch, error: Exception) -> DataError:
    """The one-line error for what the hub did not give."""
    from huggingface_hub import errors

    name, web = hub.name, _web(hub, wanted.kind)
    lead = f"no folder {name}, and the model hub does not give it"
    if wanted.kind == "dataset":
        lead = f"{name} is neither a folder nor a dataset that the hub gives us"
    if hub.revision:
        lead += f" at revision {hub.revision}"
    if isinstance(error, errors.GatedRepoError):
        why = f"it is gated: ask for access at {web}, and log in with `hf auth login` or HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f"it has no such revision; it has {_revisions(hub, wanted.kind)}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = f"there is no {wanted.kind} at {web}, or it is private: log in with `hf auth login` or HF_TOKEN"
    else:
        why = message_of(error)
    return DataError(f"{lead} ({why}). {wanted.instead}")


def message_of(error: BaseException) -> str:
    """The message of an error of the hub's client, on one line."""
    # An answer of the hub's has its number on the first line and what it means on the next.
    lines = [line.strip(" .") for line in str(error).splitlines() if line.strip()][:2]
    return ". ".join(lines) or type(error).__name__


def _web(hub: HubId, kind: RepoKind) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{hub.name}"


def _revisions(hub: HubId, kind: RepoKind) -> str:
    import huggingface_hub

    try:
        refs = huggingface_hub.list_repo_refs(hub.name, repo_type=kind)
    except Exception:  # the error that is being told matters more
        return "others"
    return ", ".join(ref.name for ref in (*refs.branches, *refs.tags)[:8]) or "none"


def upload(hub: HubId, files: Mapping[str, Path | bytes], *, message: str, private: bool, instead: str) -> str:
    """Puts files into a model repository in one commit, all or none; makes the repository and the branch where there are none.

    Args:
        hub: The repository; its revision is a branch.
        files: Contents, or local files, by path in the repository.
        private: Whether a new repository is for its owner only; one that is there stays as it is.
        instead: What the user can do where it fails, for the error.

    Returns:
        The commit's address.

    Raises:
        DataError: The hub cannot be reached, or does not take it.
        MissingDependencyError: `huggingface_hub` is not installed.
    """
    package = client("pushing to the hub", instead)
    operations = [
        package.CommitOperationAdd(
            path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else os.fspath(content)
        )
        for name, content in files.items()
    ]
    try:
        package.create_repo(hub.name, private=private, exist_ok=True)
        if hub.revision:
            package.create_branch(hub.name, branch=hub.revision, exist_ok=True)
        made = package.create_commit(hub.name, operations, commit_message=message, revision=hub.revision)
    except Exception as error:
        raise DataError(f"the hub does not take {hub} ({_refusal(error)}); nothing was published. {instead}") from error
    return str(made.commit_url)


def check_card(text: str, instead: str) -> None:
    """Has the hub judge a model card's front matter.

    Raises:
        DataError: It is refused, or the hub cannot be reached.
    """
    package = client("pushing to the hub", instead)
    try:
        package.ModelCard(text).validate()
    except Exception as error:
        raise DataError(f"the hub does not accept the model card ({message_of(error)}). {instead}") from error


def _refusal(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{message_of(error)}: log in with `hf auth login` or HF_TOKEN, with a token that may write there"
    return message_of(error)
