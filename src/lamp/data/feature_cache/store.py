"""Which shards a feature cache has, of the images and of their augmented views, and whether they are complete and up to date."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lamp.configuration import from_json, to_json
from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.feature_cache.manifest import MANIFEST, advice, differences
from lamp.data.feature_cache.shards import Shards, ShardState
from lamp.data.fingerprints import EpisodeFingerprints
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.errors import DataError, MismatchError
from lamp.files import read_json

INCOMPLETE = (ShardState.MISSING, ShardState.FEWER)
VIEWS = "views"
VIEWS_MANIFEST = "augmentation.json"


@dataclass(frozen=True)
class FeatureStore:
    """The shards of a feature cache: of the pictures themselves and, where asked for, of their augmented views."""

    dataset: LeRobotDataset
    folder: Path
    augmentation: Augmentation = NO_AUGMENTATION
    least: Mapping[str, int] = field(default_factory=dict)
    """What each shard is to hold at least, besides the views."""
    flags: str = ""
    """Flags of `lamp cache features` that it takes to make these shards."""
    known: EpisodeFingerprints | None = None
    """What identifies the episodes, where it is at hand."""

    @cached_property
    def fingerprints(self) -> EpisodeFingerprints:
        """What identifies the episodes, as far as the cache depends on them."""
        if self.known is not None:
            return self.known
        path = self.folder / MANIFEST
        cameras = read_json(path, "feature cache's description").get("cameras") if path.exists() else None
        return EpisodeFingerprints(self.dataset, cameras or self.dataset.cameras, self.folder.parent)

    @cached_property
    def pictures(self) -> Shards:
        """Of the pictures themselves."""
        return Shards(self.dataset, self.folder, self.least, self.fingerprints)

    @cached_property
    def views(self) -> Shards | None:
        """Of all augmented views of each; None where none are asked for."""
        if not self.augmentation.views:
            return None
        least = {**self.least, "views": self.augmentation.views}
        return Shards(self.dataset, self.folder / VIEWS / self.augmentation.key, least, self.fingerprints)

    def left_out(self) -> tuple[int, ...]:
        """Episodes whose pictures cannot be read, as noted when they were last tried."""
        noted = sorted(
            episode
            for path in self.folder.glob("episode-*.left-out.json")
            if (episode := int(path.name.split("-")[1].split(".")[0])) < len(self.dataset)
        )
        return tuple(episode for episode in noted if self.pictures.state(episode) is ShardState.LEFT_OUT)

    def is_current(self, episode: int) -> bool:
        """Whether an episode needs nothing."""
        parts = (self.pictures, self.views)
        return all(shards.state(episode) is ShardState.CURRENT for shards in parts if shards is not None)

    def is_settled(self, episode: int) -> bool:
        """The same, or it was left out."""
        return self.is_current(episode) or self.pictures.state(episode) is ShardState.LEFT_OUT

    def check(self, *, complete: bool = True, episodes: Collection[int] | None = None) -> None:
        """Checks what is stored by the shards' headers.

        Args:
            complete: Whether nothing may be missing, either.
            episodes: Of which; all by default.

        Raises:
            DataError: A shard is missing or corrupt.
            MismatchError: One was made from other data, or the augmented views that are there are others.
        """
        if complete:
            self._check_views()
        total, again = len(self.dataset), advice(self.dataset, self.flags)
        expected = set(range(total) if episodes is None else episodes).difference(self.left_out())
        for shards, what in ((self.pictures, "episodes"), (self.views, "episodes' augmented views")):
            states = {episode: shards.state(episode) for episode in sorted(expected)} if shards is not None else {}
            missing = [episode for episode, state in states.items() if state in INCOMPLETE]
            if missing and complete:
                raise DataError(f"{self.folder} lacks {len(missing)} of {total} {what}; complete it with {again}")
            for episode, state in states.items():
                if shards is not None and state not in (ShardState.CURRENT, *INCOMPLETE):
                    kind = DataError if state is ShardState.CORRUPT else MismatchError
                    said = f"{shards.path(episode)} {state.value} ({shards.told(episode, state)})"
                    raise kind(f"{said}; bring it up to date with {again}")

    def _check_views(self) -> None:
        if self.views is None or self.views.folder.is_dir():
            return
        wanted = _flat(to_json(self.augmentation))
        for path in sorted((self.folder / VIEWS).glob(f"*/{VIEWS_MANIFEST}")):
            stored = _flat(to_json(read_augmentation(path)))
            told = [line for line in differences(stored, wanted) if not line.startswith("views ")]
            raise MismatchError(
                f"{path.parent} has other augmented views: {'; '.join(told) or 'drawn by other code'}. "
                f"Make those that are asked for with {advice(self.dataset, self.flags)}, or train with the stored ones"
            )


def read_augmentation(path: Path) -> Augmentation:
    """Reads what a folder of views says of itself."""
    return from_json(Augmentation, read_json(path, "description of augmented views"), where=str(path))


def _flat(plain: object, name: str = "") -> dict[str, object]:
    """The entries of nested JSON objects, each under its dotted name."""
    if not isinstance(plain, Mapping):
        return {name: plain}
    return {
        key: value
        for entry, item in plain.items()
        for key, value in _flat(item, f"{name}.{entry}" if name else str(entry)).items()
    }


HIDDEN = "hidden"
"""The name of the values in a shard: (draw, frame, token, channel), of augmented views with the view before that."""
HIDDEN_MANIFEST = "hidden.json"
