"""Checkpoints on the Hugging Face hub: found there by their id, copied here, and published with a card of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lamp import checksums
from lamp.errors import DataError, unknown
from lamp.files import atomic_path, atomic_write_text
from lamp.hub import Fetch, HubId, check_card, fetch, upload
from lamp.train.checkpoint import ADAPTER_FOLDER, WEIGHTS, load_adapter, load_checkpoint
from lamp.train.checkpoint_metadata import FILE_NAME, checkpoint_folder, parse_description, read_description
from lamp.train.model_card import Publication, model_card

CARD = "README.md"
VLM = tuple(f"vlm/{pattern}" for pattern in ("*.safetensors", "*.json", "*.txt", "*.jinja"))
"""Of an imported policy that holds its own vision-language model."""
ADAPTERS = (f"{ADAPTER_FOLDER}/*.safetensors", f"{ADAPTER_FOLDER}/*.json")
"""Of a policy that was trained with adapters in its vision-language model."""
PUBLISHED = (FILE_NAME, WEIGHTS, CARD, *VLM, *ADAPTERS)
"""All that is published and copied: the state that continues a run stays where it is."""
PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pt2", ".pth")
"""Endings of files that run code when they are read the usual way."""
INSTEAD = (
    "Give a checkpoint's folder instead, such as a copy made with `lamp pull` or `hf download` where there is a hub."
)
PUSH_INSTEAD = (
    "The checkpoint's folder can be copied or served as it is; `lamp push --dry-run` writes its card without a hub."
)


SHIPPED = Path(__file__).parent / "pretrained"
"""Motion Experts that come with LaMP, each a checkpoint that `lamp pretrain` made."""


def shipped_checkpoints() -> list[str]:
    """Their names, such as `pretrained/libero_object`."""
    return [f"{SHIPPED.name}/{file.parent.name}" for file in sorted(SHIPPED.glob(f"*/{FILE_NAME}"))]


def find_checkpoint(source: Path | str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: one on this machine, one that comes with LaMP, or a hub id's, copied here when first needed.

    Args:
        source: A folder (which comes first), `pretrained/NAME`, or OWNER/NAME or OWNER/NAME@REVISION on the hub.
        revision: The hub's branch, tag or commit.

    Raises:
        ConfigError: No such checkpoint comes with LaMP.
        DataError: The hub does not give it, or what is there is no checkpoint, or holds a pickle.
        MissingDependencyError: A hub id is given, and `huggingface_hub` is not installed.
    """
    text, path = os.fspath(source), Path(source).expanduser()
    if path.parent == Path(SHIPPED.name) and not path.exists():
        if path.as_posix() not in shipped_checkpoints():
            raise unknown("checkpoint that comes with LaMP", text, shipped_checkpoints())
        return SHIPPED / path.name
    hub = None if path.exists() else HubId.parse(text, revision)
    if hub is not None:
        return fetch(hub, Fetch(patterns=PUBLISHED, instead=INSTEAD), lambda names: _check_files(hub, names))
    if revision is not None:
        there = "a folder on this machine, which has no revisions" if path.exists() else "not a hub id"
        raise DataError(f"{text} is {there}; expected OWNER/NAME with revision {revision}, or a folder alone.")
    return path


def _check_files(hub: HubId, names: Sequence[str]) -> None:
    """
    Raises:
        DataError: The repository holds a file that runs code when it is read, or no checkpoint.
    """
    pickles = sorted(name for name in names if name.lower().endswith(PICKLES))
    if pickles:
        raise DataError(
            f"{hub} holds {pickles[0]} ({len(pickles)} such in all), a pickle, which can run any code when it is read: nothing "
            "was copied. Expected safetensors and JSON only; `lamp import-released` reads the authors' own release."
        )
    lacking = [name for name in (FILE_NAME, WEIGHTS) if name not in names]
    if lacking:
        have = ", ".join(sorted(names)[:6]) or "nothing"
        raise DataError(f"{hub} is not a checkpoint: it lacks {' and '.join(lacking)} and has {have}. {INSTEAD}")


def describe_remote(hub: HubId) -> tuple[Path, str]:
    """Fetches a hub checkpoint's description alone, without its weights: the file, and the commit."""
    wanted = Fetch(patterns=(FILE_NAME,), instead=INSTEAD)
    file = fetch(hub, wanted, lambda names: _check_files(hub, names)) / FILE_NAME
    parse_description(file)
    return file, file.parent.name


def pull(source: str, out: Path, revision: str | None = None) -> Path:
    """Copies a checkpoint of the hub to a folder, once its weights are found to be those that its description names.

    The copy has the checksums of its files beside it, for `lamp info --verify`.

    Raises:
        DataError: The hub does not give it, it is damaged, or something else is in the folder's place.
    """
    folder = checkpoint_folder(find_checkpoint(source, revision))
    _, description = load_checkpoint(folder)
    load_adapter(folder, description)
    check_replaceable(out)
    with atomic_path(out) as staged:
        staged.mkdir()
        for name, file in published_files(folder).items():
            (staged / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, staged / name)
        copied = checksums.files_in(staged, without=[CARD])  # the card is its owner's to change
        checksums.write_checksums(staged / checksums.CHECKSUMS, checksums.checksums_of(staged, copied))
    return out


def check_replaceable(out: Path) -> None:
    """Makes sure that what a copy would take the place of is nothing, or an earlier copy.

    Raises:
        DataError: Anything else is there: a run, a checkpoint that a training continues from, somebody's files.
    """
    if not out.exists():
        return
    own = {Path(pattern).parts[0] for pattern in PUBLISHED} | {checksums.CHECKSUMS}
    others = sorted({path.name for path in out.iterdir()} - own) if out.is_dir() else [out.name]
    if others:
        raise DataError(
            f"{out} is there and holds no checkpoint alone, but also {others[0]!a}; expected a new folder, or an earlier copy."
        )


def published_files(folder: Path) -> dict[str, Path]:
    """A checkpoint's files that belong on the hub, by their place there."""
    files = [file for pattern in PUBLISHED for file in sorted(folder.glob(pattern)) if file.is_file()]
    return {file.relative_to(folder).as_posix(): file for file in files}


def card_of(path: Path, about: Publication) -> str:
    """The card of a checkpoint, or of the run that holds it."""
    return model_card(read_description(path), about)


def write_card(folder: Path, about: Publication) -> None:
    """Puts a checkpoint's card beside it."""
    atomic_write_text(folder / CARD, card_of(folder, about))


def push(path: Path, repository: str, about: Publication, *, private: bool = False, message: str | None = None) -> str:
    """Publishes a checkpoint, or the one that a run holds, with its card, in one commit.

    Args:
        repository: OWNER/NAME, made where there is none, or OWNER/NAME@BRANCH.
        about: What the card says beside the checkpoint's own record.
        private: Whether a new repository is for its owner only.
        message: Of the commit; by default it names what is published.

    Returns:
        The commit's address.

    Raises:
        DataError: The checkpoint is damaged, the hub cannot be reached, or it does not take it.
        MissingDependencyError: `huggingface_hub` is not installed.
    """
    hub = HubId.parse(repository)
    if hub is None:
        raise DataError(f"{repository!r} is not a hub id; expected OWNER/NAME, or OWNER/NAME@BRANCH.")
    folder = checkpoint_folder(path)
    # Damaged weights are found here, and not by whoever takes them from the hub.
    _, description = load_checkpoint(folder)
    load_adapter(folder, description)
    card = model_card(description, replace(about, repository=hub.name))
    files: dict[str, Path | bytes] = {**published_files(folder), CARD: card.encode()}
    check_card(card, PUSH_INSTEAD)
    message = message or f"LaMP {description.kind}, step {description.step}"
    return upload(hub, files, message=message, private=private, instead=PUSH_INSTEAD)


def copy_vlm(source: Path, target: Path) -> None:
    """Takes along the vision-language model that an imported checkpoint holds, or the adapters that were trained in it."""
    description = read_description(source)
    folders = [description.imported.vlm.folder] if description.imported is not None else []
    for folder in (*folders, ADAPTER_FOLDER if description.adapter_sha256 else None):
        if folder is not None:
            shutil.copytree(checkpoint_folder(source) / folder, target / folder)
