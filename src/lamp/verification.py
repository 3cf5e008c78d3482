"""Reading a folder of each kind in full, and comparing its files with the checksums that were written with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lamp import checksums
from lamp.checksums import CHECKSUMS, ChecksumFault
from lamp.errors import DataError, LampError
from lamp.json_files import read_json_as, read_json_object


@dataclass(kw_only=True)
class Verification:
    """The result of verifying a folder."""

    files: int = 0
    """Number of files read."""
    bytes: int = 0
    faults: list[ChecksumFault] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    """What has no checksum to compare with."""

    def compare(self, folder: Path, listed: checksums.Listed) -> None:
        """Compares a folder's files with a list of checksums."""
        self.files += len(listed)
        self.bytes += sum(checksum.bytes for checksum in listed.values())
        self.faults += checksums.compare(folder, listed)

    def check(self, file: Path, read: Callable[[], object]) -> None:
        """Calls `read`, and records its error as a fault of the file."""
        try:
            read()
        except (LampError, OSError) as error:
            self.faults.append(ChecksumFault(file=file, problem=" ".join(str(error).split())))

    def count(self, file: Path) -> None:
        """Counts a file that is read without a list of checksums."""
        if file.is_file():
            self.files += 1
            self.bytes += file.stat().st_size


def compare_list(path: Path, verification: Verification) -> bool:
    """Compares with the list that `lamp info --write-checksums` wrote; returns whether there is one."""
    file = path / CHECKSUMS
    if file.is_file():
        verification.check(file, lambda: verification.compare(path, checksums.read_checksums(file)))
    return file.is_file()


def verify_dataset(path: Path, verification: Verification) -> None:
    from lamp.data.check import check_dataset
    from lamp.data.lerobot.format import CHECKSUMS_PATH
    from lamp.data.lerobot.writer import dataset_files

    def check() -> None:
        faults = check_dataset(path, quick=True).faults
        verification.faults.extend(ChecksumFault(file=path, problem=str(fault)) for fault in faults)

    listed = path / CHECKSUMS_PATH
    if listed.is_file():
        verification.check(listed, lambda: verification.compare(path, checksums.read_checksums(listed)))
        kept = (
            checksums.read_checksums(listed) if not any(fault.file == listed for fault in verification.faults) else {}
        )
        more = [file for file in dataset_files(path) if kept and file.relative_to(path).as_posix() not in kept]
        verification.unchecked += [f"{file} is not in {listed}" for file in more]
    else:
        verification.check(path, check)
        verification.unchecked.append(
            f"{path} has no checksums: its files were read but could not be compared. "
            f"`lamp info {path} --write-checksums` writes them for later"
        )


def verify_scene_flow(path: Path, verification: Verification) -> None:
    from lamp.sceneflow.store import GroupMetadata, SceneFlowStore

    def intact() -> None:
        stored = read_json_as(path / "zarr.json", GroupMetadata, "description of a store")
        if checksums.is_intact(stored.get("attributes", {})) is False:
            raise DataError("is not as it was written")

    compare_list(path, verification)
    before = len(verification.faults)
    verification.check(path / "zarr.json", intact)
    verification.check(path / "zarr.json", lambda: SceneFlowStore(path))
    if len(verification.faults) > before:
        return
    store = SceneFlowStore(path)
    for episode in store.episodes:
        folder = path / f"episode-{episode:06d}"
        if (folder / CHECKSUMS).is_file():
            compare_list(folder, verification)
            continue
        verification.unchecked.append(f"{folder} has no checksums of its descriptions: its numbers were read")
        for camera in store.description.cameras:
            verification.check(folder, lambda e=episode, c=camera: store.read(e, store.frames(e, c), c))


def verify_shards(path: Path, verification: Verification) -> None:
    from lamp.data.feature_cache.shards import content_hash, load_mapped

    try:
        shared = read_json_object(path / "manifest.json", "description").get("shared_sha256")
    except LampError:  # reported below
        shared = None

    def shard(file: Path) -> None:
        tensors, header = load_mapped(file)
        wanted = shared if file.name == "shared.safetensors" else header.get("sha256")
        if checksums.is_intact(header) is False or wanted not in (None, content_hash(tensors)):
            raise DataError("is not as it was written; remove it and run `lamp cache features` again")
        if wanted is None:
            verification.unchecked.append(f"{file} holds no checksum: it was read")

    def description(file: Path) -> None:
        if checksums.is_intact(read_json_object(file, "description")) is False:
            raise DataError("is not as it was written; remove it and run `lamp cache features` again")

    compare_list(path, verification)
    for file in checksums.files_in(path, without=[CHECKSUMS]):
        work = {".safetensors": shard, ".json": description}.get(file.suffix)
        if work is not None:
            verification.count(file)
            verification.check(file, lambda f=file, w=work: w(f))


def verify_checkpoint(path: Path, verification: Verification) -> None:
    from lamp.data.feature_cache.shards import content_hash
    from lamp.train.checkpoint import COMMITTED, TRAINING, WEIGHTS, read_committed
    from lamp.train.checkpoint_metadata import read_description
    from lamp.train.shards import read_tensors

    def weights() -> None:
        if content_hash(read_tensors(path / WEIGHTS)) != read_description(path).weights_sha256:
            raise DataError("does not hold the weights that lamp.json names")

    kept: list[checksums.Listed] = []
    committed = path / TRAINING / COMMITTED
    verification.check(committed, lambda: kept.append(read_committed(path) or {}))
    if kept and kept[0]:
        verification.compare(path, kept[0])
        return
    listed = compare_list(path, verification)
    verification.check(path / WEIGHTS, weights)
    verification.count(path / WEIGHTS)
    if not listed:
        verification.unchecked.append(
            f"{path} has a checksum of its weights only; `lamp info {path} --write-checksums` writes those of all files"
        )


def verify_run(path: Path, verification: Verification) -> None:
    from lamp.train.metrics import read_metrics

    verification.check(path / "metrics.jsonl", lambda: read_metrics(path / "metrics.jsonl"))
    if (path / "lamp.json").is_file():
        verification.check(path / "lamp.json", lambda: read_json_object(path / "lamp.json", "record of a run"))
    if (path / "checkpoint").is_dir():
        verify_checkpoint(path / "checkpoint", verification)


def verify_evaluation(path: Path, verification: Verification) -> None:
    from lamp.benchmark.episodes import read_records
    from lamp.benchmark.run_manifest import read_manifest

    verification.check(path / "run.json", lambda: read_manifest(path))
    verification.check(path / "episodes.jsonl", lambda: read_records(path))
    if not compare_list(path, verification):
        verification.unchecked.append(f"{path} keeps no checksums: its lines were read")


def verify_recording(path: Path, verification: Verification) -> None:
    from lamp_client.recording import read_episode

    for file in sorted(path.glob("*.lamprec")):
        verification.count(file)
        try:
            if not read_episode(path, file.stem).complete:
                verification.unchecked.append(f"{file} has no end: the program was killed, or the file is cut")
        except Exception as error:
            verification.faults.append(ChecksumFault(file=file, problem=f"{type(error).__name__}: {error}"))


def verify_other(path: Path, verification: Verification) -> None:
    if not compare_list(path, verification):
        verification.unchecked.append(
            f"{path} keeps no checksums; `lamp info {path} --write-checksums` writes them for later"
        )
