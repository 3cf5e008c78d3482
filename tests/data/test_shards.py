"""A cache's shards: damage is named, views are kept beside the pictures, sizes are predicted, a full disk spoils nothing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import TEXT, Compact, Plain
from demonstrations import write
from safetensors import SafetensorError
from test_sequences import Reader

import lamp.data.feature_cache.cache as cache_module
import lamp.data.feature_cache.shards as shards_module
from lamp.data.augmentation import Augmentation, RandomResizedCrop
from lamp.data.feature_cache.build import BuildPlan, PreloadedBackbone, make_features
from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.feature_cache.encode import FrozenBackbone, StorageFormat
from lamp.data.feature_cache.manifest import FeatureStore
from lamp.data.feature_cache.report import check_store, describe_cache
from lamp.data.feature_cache.shards import Shards, ShardState, content_hash, read_header
from lamp.data.feature_cache.work_sharing import BuildProgress, Workers
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import DataError, MismatchError
from lamp.types import Observations

AUGMENTED = Augmentation(views=2)
BACKBONES = [Plain(), Compact(), Reader(), Reader(length=11, dtype=torch.float32)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def contents(folder: Path) -> dict[str, tuple[dict[str, str], bytes]]:
    """What shards say of themselves and what they hold; in which order they say it is left to chance."""
    found = {name: content[8 + int.from_bytes(content[:8], "little") :] for name, content in files(folder).items()}
    return {name: (read_header(folder / name), values) for name, values in found.items()}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_views_are_the_backbones_tokens_of_the_drawn_pictures(
    dataset: LeRobotDataset, backbone: FrozenBackbone
) -> None:
    plain = FeatureCache.build(dataset, backbone)
    before = files(plain.folder)
    cache = FeatureCache.build(dataset, backbone, augmentation=AUGMENTED)
    assert {name: now for name, now in files(cache.folder).items() if name in before} == before
    rows, views = np.array([30, 0, 12, 32, 0, 11]), np.array([2, 0, 1, 1, 2, 0])
    found = cache.encoded(rows, views)
    for place, (row, view) in enumerate(zip(rows.tolist(), views.tolist(), strict=True)):
        episode, frames = int(cache.index.episode[row]), cache.index.frame[row : row + 1]
        images = {camera: dataset.frames(camera, episode, frames) for camera in ("agentview", "wrist")}
        drawn = AUGMENTED.view(view, images, episode=episode, frames=frames)
        seen = {camera: torch.from_numpy(image) for camera, image in drawn.items()}
        if isinstance(backbone, Plain):
            tokens = torch.cat([backbone.image_tokens(camera, seen[camera])[0] for camera in backbone.cameras])
            torch.testing.assert_close(found.tokens[place, :-TEXT], tokens, rtol=1e-3, atol=1e-3)
        else:
            alone = backbone.encode(Observations(images=seen, instructions=(dataset.episode(episode).task,)))  # pyright: ignore[reportAttributeAccessIssue]
            torch.testing.assert_close(found.tokens[place][found.mask[place]], alone.tokens[alone.mask], rtol=0, atol=0)
    untouched = cache.encoded(rows)
    assert torch.equal(untouched.tokens, plain.encoded(rows).tokens)
    assert not torch.equal(found.tokens[0], untouched.tokens[0]) and torch.equal(found.tokens[1], untouched.tokens[1])
    assert not torch.equal(found.tokens[4], found.tokens[1])


def test_more_views_are_added_and_fewer_are_read(dataset: LeRobotDataset) -> None:
    FeatureCache.build(dataset, Compact(), augmentation=AUGMENTED)
    more = replace(AUGMENTED, views=3)
    assert not FeatureCache.is_complete(dataset, "compact", augmentation=more)
    with pytest.raises(
        DataError, match="lacks 4 of 4 episodes' augmented views; complete it with `lamp cache features"
    ):
        FeatureCache(dataset, "compact", augmentation=more)
    three = FeatureCache.build(dataset, Compact(), augmentation=more)
    rows = np.arange(len(three))
    third = three.encoded(rows, np.full(len(rows), 3)).tokens
    two = FeatureCache(dataset, "compact", augmentation=AUGMENTED)
    second = two.encoded(rows, np.full(len(rows), 2)).tokens
    assert torch.equal(second, three.encoded(rows, np.full(len(rows), 2)).tokens) and not torch.equal(second, third)
    found = describe_cache(three.folder)
    assert found["episodes"] == 4 and found["views"][0]["augmentation"]["views"] == 3


def test_views_of_another_kind_are_refused_and_the_difference_is_named(dataset: LeRobotDataset) -> None:
    FeatureCache.build(dataset, Compact(), augmentation=AUGMENTED)
    other = replace(AUGMENTED, crop=RandomResizedCrop(area=(0.7, 1.0)), views=1)
    told = r"crop\.area is \[0\.9, 1\.0\] stored, \[0\.7, 1\.0\] requested\. Make the requested ones with `lamp cache"
    with pytest.raises(MismatchError, match=told):
        FeatureCache(dataset, "compact", augmentation=other)
    FeatureCache.build(dataset, Compact(), augmentation=other)
    FeatureCache(dataset, "compact", augmentation=AUGMENTED)


def test_every_kind_of_damage_is_named(dataset: LeRobotDataset) -> None:
    cache = FeatureCache.build(dataset, Reader(), augmentation=AUGMENTED)
    store = FeatureStore(dataset, cache.folder, AUGMENTED)
    sound = check_store(store)
    assert sound.ok and sound.episodes == {"current": 8} and sound.faults == ()
    flipped, views = store.pictures.path(1), store.views
    assert views is not None
    content = bytearray(flipped.read_bytes())
    content[-3] ^= 1
    flipped.write_bytes(content)
    views.path(2).write_bytes(views.path(2).read_bytes()[:-5])
    shutil.copy(store.pictures.path(0), store.pictures.path(3))
    views.path(0).unlink()
    FeatureStore(dataset, cache.folder).pictures.state(1)
    found = check_store(store)
    assert not found.ok and found.episodes == {"current": 4, "corrupt": 2, "stale": 1, "missing": 1}
    told = "\n".join(found.faults)
    assert f"{flipped} is not a whole file (episode 1)" in told and f"{views.path(2)} is not a whole file" in told
    assert (
        f"{store.pictures.path(3)} was made from other data than the episode now holds (episode 3: fingerprint" in told
    )
    assert f"{views.path(0)} is missing (episode 0)" in told
    with pytest.raises(
        MismatchError, match=r"fingerprint [0-9a-f]{16} stored, [0-9a-f]{16} now\); bring it up to date"
    ):
        FeatureStore(dataset, cache.folder).check(complete=False)
    assert describe_cache(cache.folder)["views"][0]["unreadable"] == ["episode-000002.safetensors"]


def test_another_backbone_is_refused_and_the_difference_is_named(dataset: LeRobotDataset) -> None:
    FeatureCache.build(dataset, Plain())
    wanted = {"cameras": [["agentview", 4]], "prompt": "now: {instruction}"}
    told = r"cameras is .* stored, \[\['agentview', 4\]\] requested; prompt is None stored, 'now: \{instruction\}' requested"
    with pytest.raises(MismatchError, match=told):
        FeatureCache(dataset, "other", wanted=wanted)
    with pytest.raises(MismatchError, match="its weights or code: key plain stored, other requested"):
        FeatureCache(dataset, "other", wanted=Plain().description)


def test_a_cache_may_be_elsewhere(dataset: LeRobotDataset, tmp_path: Path) -> None:
    root = tmp_path / "disk"
    cache = FeatureCache.build(dataset, Compact(), root=root)
    assert cache.folder == root / dataset.root.name / "compact" and not (dataset.root / "features").exists()
    assert torch.equal(
        FeatureCache(dataset, "compact", root=root).encoded(np.arange(3)).tokens, cache.encoded(np.arange(3)).tokens
    )
    with pytest.raises(DataError, match="no features of the backbone compact"):
        FeatureCache(dataset, "compact")


@pytest.mark.parametrize(("storage", "bound"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_tokens_in_fewer_bits_are_as_near_as_stated(
    dataset: LeRobotDataset, storage: StorageFormat, bound: float
) -> None:
    backbone = Reader(dtype=torch.float32)
    exact = FeatureCache.build(dataset, backbone, root=dataset.root / "exact").encoded(np.arange(33)).tokens
    cache = FeatureCache.build(dataset, backbone, storage=storage)
    found = cache.encoded(np.arange(33)).tokens
    error = ((found - exact).abs() / exact.abs().clamp(min=1e-9)).max().item()
    assert found.dtype == torch.float32 and bound / 20 < error <= bound
    said = describe_cache(cache.folder)
    assert said["storage"] == storage and bound / 20 < said["rounding error"] < bound
    assert cache.kept_otherwise == (storage,)
    with pytest.raises(MismatchError, match=f"keeps its tokens as {storage}, float32 requested"):
        FeatureCache.build(dataset, backbone)


def test_numbers_too_large_for_the_format_are_refused(dataset: LeRobotDataset) -> None:
    class Large(Plain):
        def image_tokens(self, camera: str, images: torch.Tensor) -> torch.Tensor:
            return super().image_tokens(camera, images) * 1e6

    with pytest.raises(DataError, match=r"episode 0 of .*: .*camera agentview are not finite .*--storage bfloat16"):
        FeatureCache.build(dataset, Large())
    FeatureCache.build(dataset, Large(), root=dataset.root / "other", storage="bfloat16")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("views", [0, 3])
def test_the_size_is_predicted(dataset: LeRobotDataset, backbone: FrozenBackbone, views: int) -> None:
    plans: list[BuildPlan] = []
    make_features(
        dataset,
        backbone,
        PreloadedBackbone(backbone),
        workers=Workers(),
        planned=plans.append,
        augmentation=Augmentation(views=views),
    )
    (plan,) = plans
    written = sum(len(content) for name, content in files(plan.folder).items() if "episode" in name)
    headers = 1024 * 4 * (2 if views else 1)
    assert (plan.episodes, plan.frames, plan.views) == (4, 33, views) and plan.size is not None
    assert 0 <= plan.size - written < headers, "tokens to the byte; headers take less than allowed for"


def test_nothing_is_begun_that_will_not_fit(dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "_free", lambda folder: 1000)
    with pytest.raises(DataError, match=r"needs about 0.0.* MB more, and 0.001 MB are free there; nothing was written"):
        FeatureCache.build(dataset, Compact())
    assert not (dataset.root / "features").exists()


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(
    dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = shards_module.save_file

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if "000002" in path.name:
            path.write_bytes(b"half of it")
            raise error
        real(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "save_file", save)
        with pytest.raises(
            DataError, match=r"no space left for .*what is finished stays: free some and run the same command"
        ):
            FeatureCache.build(dataset, Compact())
    folder = dataset.root / "features" / "compact"
    assert {path.name for path in folder.glob("episode-*")} == {f"episode-00000{n}.safetensors" for n in (0, 1)}
    assert not list(folder.glob(".tmp-*"))
    FeatureCache.build(dataset, Compact())


def test_other_errors_of_the_disk_are_not_taken_for_a_full_one(dataset: LeRobotDataset) -> None:
    shards = Shards(dataset, dataset.root / "meta" / "info.json" / "below")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        shards.write(0, {"a": torch.zeros(2)})


KILLED = """
import sys, time
from pathlib import Path
import lamp.data.feature_cache.shards as shards
from backbones import Compact
from lamp.data.augmentation import Augmentation
from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.lerobot import LeRobotDataset
real = shards.save_file
def save(tensors, path, metadata):
    real(tensors, path, metadata=metadata)
    print("writing", path.name, flush=True)
    time.sleep(float(sys.argv[2]))
shards.save_file = save
FeatureCache.build(LeRobotDataset(Path(sys.argv[1])), Compact(), augmentation=Augmentation(views=2))
print("done", flush=True)
"""


@pytest.mark.long
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Each time it is killed between the writing of a shard and its taking its place, one shard further on."""
    whole = FeatureCache.build(write(tmp_path / "whole"), Compact(), augmentation=AUGMENTED)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    for _ in range(3):
        words = [sys.executable, "-c", KILLED, str(dataset.root), "0.3"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
        assert process.stdout is not None
        assert [process.stdout.readline().split()[0] for _ in range(2)] == ["writing", "writing"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = FeatureStore(dataset, dataset.root / "features" / "compact", AUGMENTED)
        states = {shards.state(e) for shards in (store.pictures, store.views) if shards is not None for e in range(4)}
        assert states <= {ShardState.CURRENT, ShardState.MISSING}
        assert list(store.folder.rglob(".tmp-*"))
    cache = FeatureCache.build(dataset, Compact(), augmentation=AUGMENTED)
    assert contents(cache.folder) == contents(whole.folder)
    assert not list(cache.folder.rglob(".tmp-*/episode-*"))


@pytest.mark.long
def test_what_two_processes_make_is_what_one_makes(dataset: LeRobotDataset, tmp_path: Path) -> None:
    seen: list[BuildProgress] = []
    one = FeatureCache.build(write(tmp_path / "other"), Reader(), augmentation=AUGMENTED)
    two = FeatureCache.build(dataset, Reader(), augmentation=AUGMENTED, processes=2, progress=seen.append)
    assert contents(one.folder) == contents(two.folder) and len(files(two.folder)) == 8
    assert seen[-1].episodes == seen[-1].of_episodes == 4


def test_the_least_recently_used_shards_are_let_go(dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache.build(dataset, Compact())
    expected = cache.encoded(np.arange(33)).tokens
    monkeypatch.setattr(cache_module, "MAX_MAPPED", 2)
    again = FeatureCache(dataset, "compact")
    assert torch.equal(again.encoded(np.arange(33)).tokens, expected)
    assert len(again._layout._shards._mapped) == 2  # pyright: ignore[reportPrivateUsage]


def test_a_checksum_is_of_names_shapes_formats_and_values() -> None:
    one = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    others = [
        {"a": torch.arange(4.0), "c": torch.zeros(2)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.zeros(2)},
        {"a": torch.arange(4.0).view(torch.int32), "b": torch.zeros(2)},
        {"a": torch.tensor([0.0, 1.0, 2.0, 3.5]), "b": torch.zeros(2)},
    ]
    assert content_hash(dict(reversed(one.items()))) == content_hash(one)
    assert len({content_hash(one), *map(content_hash, others)}) == 5
    assert content_hash({"none": torch.zeros(0)})


def test_shards_of_earlier_versions_are_read(dataset: LeRobotDataset) -> None:
    """They have no checksum, and their manifest no number format."""
    import json

    from safetensors.torch import load_file, save_file

    cache = FeatureCache.build(dataset, Compact())
    expected = cache.encoded(np.arange(33)).tokens
    for episode in range(4):
        path = cache.folder / f"episode-{episode:06d}.safetensors"
        save_file(load_file(path), path, metadata={"fingerprint": read_header(path)["fingerprint"]})
    manifest = json.loads((cache.folder / "manifest.json").read_text())
    del manifest["storage"]
    (cache.folder / "manifest.json").write_text(json.dumps(manifest))
    again = FeatureCache(dataset, "compact")
    assert torch.equal(again.encoded(np.arange(33)).tokens, expected) and again.kept_otherwise == ()
    assert check_store(FeatureStore(dataset, cache.folder)).ok and FeatureCache.is_complete(dataset, "compact")
