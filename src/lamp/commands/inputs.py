"""What a training or a cache reads, as flags name it: embodiments, further datasets, features, another prior's sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamp.data.augmentation import Augmentation
    from lamp.data.embodiment import Embodiment
    from lamp.train.backbones import BackboneConfig
    from lamp.train.config import MixedIn, PolicyTraining


def embodiment(name: str | None) -> Embodiment:
    from lamp.data.embodiment import OWN, embodiment

    return OWN if name is None else embodiment(name)


def mixed_in(text: str, named: str | None = None, otherwise: Embodiment | None = None) -> MixedIn:
    from lamp.train.config import MixedIn

    folder, _, name = text.rpartition("=") if "=" in text else (text, "", "")
    chosen = name or named
    return MixedIn(data=folder, embodiment=otherwise if otherwise and not chosen else embodiment(chosen))


def ensure_features(
    data: Path,
    config: BackboneConfig,
    embodiment: Embodiment,
    *,
    token_width: int | None = None,
    augmentation: Augmentation | None = None,
    root: Path | None = None,
) -> None:
    """Completes what a training reads; what is stored and is not what it asks for, it refuses."""
    from lamp.data.augmentation import NO_AUGMENTATION
    from lamp.train.backbones import Caching, ensure_features

    ensure_features(
        embodiment.open(data),
        config,
        token_width=token_width,
        augmentation=augmentation or NO_AUGMENTATION,
        root=root,
        caching=Caching(refresh=False),
    )


def following(policy: PolicyTraining, motion: Path) -> PolicyTraining:
    """Takes over the grid and horizon of a motion checkpoint that `lamp resize` wrote."""
    from lamp.progress import say
    from lamp.train.resize_checkpoint import following

    if not motion.exists():  # the training will say so
        return policy
    model = following(policy.model, motion)
    if model != policy.model and model.motion is not None:
        rows, columns = model.motion.grid
        say(f"as {motion} was resized: {rows}x{columns} points, {model.motion.horizon} flow steps")
    return replace(policy, model=model)
