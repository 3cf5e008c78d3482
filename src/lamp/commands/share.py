"""Commands that exchange checkpoints: with the hub, and with the authors' release."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from lamp.commands.command import Command, find_checkpoint
from lamp.flags import parse


@dataclass(frozen=True, kw_only=True)
class PullFlags:
    """Copies a checkpoint from the Hugging Face hub to a folder, once it is found to be whole; pickles are refused."""

    source: tyro.conf.Positional[str]
    """OWNER/NAME, or OWNER/NAME@REVISION."""
    out: tyro.conf.Positional[Path]
    """The folder."""
    revision: str | None = None
    """The hub's branch, tag or commit."""


def _pull(arguments: Sequence[str]) -> None:
    flags = parse(PullFlags, arguments, "pull")
    from lamp.train.publishing import pull

    out = pull(flags.source, flags.out, flags.revision)
    print(f"{out}: a checkpoint (lamp info {out})")


@dataclass(frozen=True, kw_only=True)
class PushFlags:
    """Publishes a checkpoint on the Hugging Face hub, with a card made from its own record."""

    checkpoint: tyro.conf.Positional[Path]
    """Its folder, or the run that holds it."""
    repository: tyro.conf.Positional[str]
    """OWNER/NAME, made where there is none, or OWNER/NAME@BRANCH."""
    results: tuple[Path, ...] = ()
    """Folders of `lamp evaluate` with this checkpoint, finished, for the card."""
    licence: str | None = None
    """Of the weights, by the hub's identifier: mit, apache-2.0, cc-by-4.0 ..."""
    datasets: tuple[str, ...] = ()
    """Hub ids of what it was trained on, for the card."""
    private: bool = False
    """Make a new repository for its owner only."""
    message: str | None = None
    """Of the commit."""
    dry_run: bool = False
    """Print the card and what would be published, and ask no hub."""


def _push(arguments: Sequence[str]) -> None:
    flags = parse(PushFlags, arguments, "push")
    from lamp.benchmark.summary import checkpoint_results
    from lamp.train.checkpoint_metadata import checkpoint_folder
    from lamp.train.model_card import Publication
    from lamp.train.publishing import card_of, published_files, push

    folder = checkpoint_folder(flags.checkpoint)
    results = tuple(result for evaluation in flags.results for result in checkpoint_results(evaluation, folder))
    about = Publication(
        licence=flags.licence, datasets=flags.datasets, results=results, repository=flags.repository.partition("@")[0]
    )
    if flags.dry_run:
        print(card_of(folder, about))
        for name, file in published_files(folder).items():
            print(f"{name}: {file.stat().st_size:,} bytes", file=sys.stderr)
        return
    print(push(folder, flags.repository, about, private=flags.private, message=flags.message))


@dataclass(frozen=True, kw_only=True)
class ImportFlags:
    """Makes a checkpoint of the authors' released LaMP-LIBERO or LaMP-Motion-Expert, with all its conventions."""

    source: tyro.conf.Positional[str]
    """A folder with config.yaml, dataset_statistics.json and one .pt, or a hub id such as summerwang11/LaMP-LIBERO."""
    out: tyro.conf.Positional[Path]
    """The new checkpoint's folder."""
    revision: str | None = None
    """The hub's branch or commit."""
    vlm: Path | None = None
    """The VLM's folder: its config.json, tokenizer.json and preprocessor_config.json, and its weights where the release has none.
    By default, the VLM that config.yaml names is downloaded."""


def _import_released(arguments: Sequence[str]) -> None:
    flags = parse(ImportFlags, arguments, "import-released")
    from lamp.train.released.import_release import import_released

    imported = import_released(flags.source, flags.out, revision=flags.revision, vlm=flags.vlm)
    for note in imported.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{imported.checkpoint}: a {imported.kind} checkpoint (lamp info {imported.checkpoint})")


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Writes a checkpoint as the authors' code reads it: config.yaml, dataset_statistics.json, one .pt and a manifest."""

    checkpoint: tyro.conf.Positional[Path]
    """One that was imported, or whose model and scaling are the release's."""
    out: tyro.conf.Positional[Path]
    """The new folder."""
    vlm: Path | None = None
    """A folder with the VLM's weights as transformers saves them; by default, those that an import has kept."""


def _export_released(arguments: Sequence[str]) -> None:
    flags = parse(ExportFlags, arguments, "export-released")
    from lamp.train.released.export import export_released

    exported = export_released(find_checkpoint(flags.checkpoint), flags.out, vlm=flags.vlm)
    for note in exported.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{exported.folder}: a released {exported.kind}")


@dataclass(frozen=True, kw_only=True)
class CheckFlags:
    """Computes the golden vectors of a file with released weights, and compares: exit code 1 beyond 1e-4."""

    file: tyro.conf.Positional[Path]
    """Weights (weights.*), inputs and outputs (golden.*) in safetensors, with the sizes in the metadata's `config`."""


def _check_released(arguments: Sequence[str]) -> None:
    flags = parse(CheckFlags, arguments, "check-released")
    from lamp.model.released.golden import TOLERANCE, check

    errors = check(flags.file)
    width = max(map(len, errors))
    for name, error in errors.items():
        print(f"golden.{name:<{width}}  {error:.3g}")
    # Written so that a NaN, which compares with nothing, fails too.
    failing = [name for name, error in errors.items() if not error <= TOLERANCE]
    if failing:
        print(f"beyond {TOLERANCE}: {', '.join(failing)}", file=sys.stderr)
        raise SystemExit(1)


COMMANDS: dict[str, Command] = {
    "pull": Command(summary="copy a checkpoint from the Hugging Face hub", run=_pull),
    "push": Command(summary="publish a checkpoint on the Hugging Face hub", run=_push),
    "import-released": Command(summary="make a checkpoint of the authors' released weights", run=_import_released),
    "export-released": Command(summary="write a checkpoint as the authors' code reads it", run=_export_released),
    "check-released": Command(summary="compare golden vectors of released weights with ours", run=_check_released),
}
