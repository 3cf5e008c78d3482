"""`lamp replay`: a dry run of a policy on recorded episodes: predicted beside recorded actions, dimension by dimension."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Float

from lamp.configuration import from_json
from lamp.data.embodiment import OWN, Embodiment, action_units
from lamp.data.episode_selection import ALL_EPISODES, EpisodeSelection, number_ranges
from lamp.data.feature_cache.cache import FrozenBackbone
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.errors import ConfigError, DataError, MismatchError, unknown
from lamp.files import atomic_write_bytes
from lamp.policy import LaMPPolicy
from lamp.progress import Progress
from lamp.train.breakdown import action_names
from lamp.view.charts import INK, LINE, SERIES, SOFT, import_matplotlib
from lamp.view.images import evenly
from lamp.view.page import printable
from lamp_client.client import WebsocketPolicy
from lamp_client.types import Observation

AnyPolicy = LaMPPolicy | WebsocketPolicy
DRAWN = 3
"""Episodes in the picture."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """A dry run: gives a policy the observations of recorded episodes, and compares its actions with the recorded ones. Nothing
    moves."""

    data: str
    """The dataset, a folder or a hub id."""
    checkpoint: Path | None = None
    """A policy's checkpoint or run."""
    server: str | None = None
    """In its place, the address of a `lamp serve`: HOST:PORT, ws://... or wss://...."""
    api_key: str | None = None
    """The server's key, where it requires one."""
    embodiment: Annotated[Embodiment | None, tyro.conf.Suppress] = None
    """How the dataset records its robot; None: as the policy's own did."""
    selection: Annotated[EpisodeSelection, tyro.conf.Suppress] = ALL_EPISODES
    """Which episodes; everything: those that the policy's training held out, where the checkpoint says so of this dataset."""
    most: int = 5
    """At most so many episodes, spread evenly over those that are selected."""
    out: Path = Path("outputs/replay.png")
    """The picture, a PNG file."""
    seed: int = 0
    """Noise of the actions."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.server is None):
            both = "both are given" if self.server is not None else "neither is given"
            raise ConfigError(f"--checkpoint or --server: {both}; expected one policy to ask")
        if self.most < 1:
            raise ConfigError(f"most is {self.most}; expected at least 1 episode")


@dataclass(frozen=True, kw_only=True)
class DimensionErrors:
    """How far predicted are from recorded actions in one dimension, in the units of the data."""

    name: str
    unit: str
    """Empty where it is not known."""
    mean: float
    """Mean absolute error."""
    p95: float
    """95% of the errors are at most so large."""
    constant: float
    """Mean absolute error of the best constant, the median of the recorded values: what knowing nothing costs."""
    agrees: float | None
    """Share of the actions on the recorded side, of a dimension with two values, such as a gripper; else None."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Recorded actions of one episode, and the predicted ones of the chunks that would have been executed."""

    episode: int
    instruction: str
    observed: tuple[int, ...]
    """Frames whose observation the policy was given."""
    recorded: Float[np.ndarray, "n a"]
    predicted: Float[np.ndarray, "n a"]
    """Not-a-number where no chunk reaches."""


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What a dry run found."""

    episodes: tuple[Replayed, ...]
    dimensions: tuple[DimensionErrors, ...]
    chosen: str
    """Which episodes these are, in words."""

    @property
    def better(self) -> int:
        """Dimensions that are predicted better than by the best constant."""
        return sum(one.mean < one.constant for one in self.dimensions)

    def to_json(self) -> dict[str, Any]:
        return {
            "episodes": [one.episode for one in self.episodes],
            "chosen": self.chosen,
            "actions": sum(int(np.isfinite(one.predicted).all(1).sum()) for one in self.episodes),
            "dimensions": [vars(one) for one in self.dimensions],
        }

    def __str__(self) -> str:
        head = ("dimension", "unit", "mean error", "95% within", "a constant's", "ratio", "agrees")
        rows = [
            (
                one.name,
                one.unit or "-",
                f"{one.mean:.4g}",
                f"{one.p95:.4g}",
                f"{one.constant:.4g}",
                f"{one.mean / one.constant:.2f}" if one.constant > 0 else "-",
                "-" if one.agrees is None else f"{one.agrees:.0%}",
            )
            for one in self.dimensions
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = []
        for row in (head, *rows):
            cells = list(zip(row, widths, strict=True))
            named, counted = (
                (cell.ljust(width) for cell, width in cells[:2]),
                (cell.rjust(width) for cell, width in cells[2:]),
            )
            lines.append("  ".join([*named, *counted]).rstrip())
        numbers = number_ranges([one.episode for one in self.episodes])
        lines.append(
            f"episodes {numbers} ({self.chosen}), {self.to_json()['actions']} actions; {self.better} of {len(rows)} dimensions "
            "are predicted better than by their median"
        )
        lines.append(
            "each chunk begins at a recorded observation: this says nothing of where a policy's own actions lead"
        )
        return "\n".join(lines)


def replay(config: ReplayConfig, *, backbone: FrozenBackbone | None = None) -> ReplayReport:
    """Asks the policy, writes the picture, and returns the errors.

    Args:
        backbone: The checkpoint's frozen backbone, where the caller has it.

    Raises:
        ConfigError: The dataset lacks a camera or feature that the policy needs, or has no such episode.
        DataError: The dataset or the checkpoint is missing or damaged.
        MismatchError: The dataset does not fit the policy.
        LampClientError: The server cannot be reached, or refuses.
    """
    local = None if config.checkpoint is None else LaMPPolicy.from_checkpoint(config.checkpoint, backbone=backbone)
    policy: AnyPolicy = local if local is not None else WebsocketPolicy(*_address(config.server or ""), config.api_key)
    embodiment = config.embodiment or _embodiment(policy)
    dataset = embodiment.open(config.data)
    held_out: tuple[int, ...] | None = None
    if local is not None:
        records = [local.description.data, *(other.data for other in local.record.others)]
        trained_on = next((record for record in records if record.dataset and record.dataset == dataset.content), None)
        if trained_on is not None:
            held_out, local = trained_on.validation_episodes, local.of_dataset(trained_on.name)
        policy = local.compile()
    episodes, chosen = _episodes(config, dataset, held_out)
    replayed = []
    with Progress("replay", len(episodes), "episodes") as progress:
        for episode in episodes:
            replayed.append(_replay(policy, dataset, embodiment, episode, seed=config.seed))
            progress.advance()
    recorded, predicted = (
        np.concatenate([getattr(one, part) for one in replayed]) for part in ("recorded", "predicted")
    )
    if not np.isfinite(predicted).all(1).any():
        raise DataError(f"{dataset.root}: episodes {number_ranges(episodes)} end before the policy's first action")
    width = recorded.shape[1]
    units = action_units(embodiment, dataset, width) or ("",) * width
    names = action_names(dataset.features, embodiment, width)
    errors = tuple(
        _errors(name, unit, recorded[:, place], predicted[:, place])
        for place, (name, unit) in enumerate(zip(names, units, strict=True))
    )
    report = ReplayReport(episodes=tuple(replayed), dimensions=errors, chosen=chosen)
    atomic_write_bytes(config.out, _picture(report, dataset.fps))
    return report


def _address(text: str) -> tuple[str, int]:
    """
    Raises:
        ConfigError: It is no address.
    """
    if "://" in text:
        return text, 8000
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "8000")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"--server {text!r} is no address; expected HOST:PORT such as localhost:8000, or wss://...")
    return host, int(port)


def _embodiment(policy: AnyPolicy) -> Embodiment:
    """The robot that a policy was trained on, from its metadata."""
    stored = policy.metadata.get("embodiment")
    return OWN if stored is None else from_json(Embodiment, stored, where="the policy's embodiment")


def _episodes(config: ReplayConfig, dataset: LeRobotDataset, held_out: tuple[int, ...] | None) -> tuple[list[int], str]:
    """Which episodes are replayed, and what they are to the policy, in words."""
    if not config.selection.is_everything:
        candidates = config.selection.select(dataset)
        seen = len(candidates) if held_out is None else len(set(candidates) - {*held_out})
        description = "as selected" + (f", {seen} of them trained on" if held_out is not None and seen else "")
    elif held_out:
        candidates, description = held_out, "held out by the policy's training"
    else:
        candidates = tuple(range(len(dataset)))
        unknown = (
            "the server does not say what it was trained on"
            if config.server
            else "of a dataset that it was not trained on"
        )
        description = unknown if held_out is None else "all trained on: nothing was held out"
    chosen = [candidates[place] for place in evenly(len(candidates), config.most)]
    return chosen, description + (f", {len(chosen)} of {len(candidates)}" if len(chosen) < len(candidates) else "")


def _replay(policy: AnyPolicy, dataset: LeRobotDataset, embodiment: Embodiment, episode: int, *, seed: int) -> Replayed:
    about = policy.metadata
    recorded, states = embodiment.recorded_actions(dataset, episode), embodiment.states(dataset, episode)
    cameras = list(about.get("cameras") or dataset.cameras)
    for camera in cameras:
        if camera not in dataset.cameras:
            raise unknown(f"camera of {dataset.root} (that the policy sees)", camera, dataset.cameras)
    step, fresh = _frames_per_action(about, dataset, embodiment), dataset.fresh(episode)
    predicted, observed, frame = np.full(recorded.shape, np.nan), [], 0
    while frame < len(recorded):
        # Where pictures repeat an earlier one, the next new one is waited for.
        frame = next((later for later in range(frame, len(recorded)) if fresh[later]), len(recorded))
        if frame == len(recorded):
            break
        observation = Observation(
            images={camera: dataset.frames(camera, episode, [frame])[0] for camera in cameras},
            state=states[frame] if about.get("state_width", 1) else np.zeros(0, np.float32),
            instruction=dataset.instruction(episode, frame),
        )
        actions = policy.act(observation, noise_seed=(seed, episode, frame)).actions
        if actions.shape[1] != recorded.shape[1]:
            raise MismatchError(
                f"the policy's actions have {actions.shape[1]} values, those of {dataset.root} {recorded.shape[1]}; expected the "
                "same robot: --embodiment says how the dataset records it"
            )
        # The last of the frames that an action stands for; what an earlier chunk said of them is past.
        places = frame + (np.arange(len(actions)) + 1) * step - 1
        inside = places < len(recorded)
        predicted[places[inside]] = actions[inside]
        observed.append(frame)
        frame += step * max(1, int(about.get("execute") or len(actions)))
    return Replayed(
        episode=episode,
        instruction=dataset.instruction(episode, 0),
        observed=tuple(observed),
        recorded=recorded,
        predicted=predicted,
    )


def _frames_per_action(about: Mapping[str, Any], dataset: LeRobotDataset, embodiment: Embodiment) -> int:
    """
    Raises:
        MismatchError: Actions of the policy's rate cannot be compared with the recorded ones.
    """
    fps = about.get("fps")
    ratio = dataset.fps / fps if isinstance(fps, int | float) and fps > 0 else 1.0
    step = max(1, round(ratio))
    if abs(ratio - step) > 0.01 * step or (step > 1 and embodiment.kind.are_increments):
        expected = "its own rate" if embodiment.kind.are_increments else "its own rate or a whole multiple"
        raise MismatchError(f"{dataset.root} runs at {dataset.fps:g} fps, the policy at {fps:g}; expected {expected}")
    return step


def _errors(
    name: str, unit: str, recorded: Float[np.ndarray, " n"], predicted: Float[np.ndarray, " n"]
) -> DimensionErrors:
    known = np.isfinite(predicted)
    recorded, predicted = recorded[known].astype(np.float64), predicted[known]
    apart, values = np.abs(predicted - recorded), np.unique(recorded)
    agrees = None
    if len(values) == 2:
        agrees = float(((predicted > values.mean()) == (recorded > values.mean())).mean())
    return DimensionErrors(
        name=name,
        unit=unit,
        mean=float(apart.mean()),
        p95=float(np.quantile(apart, 0.95)),
        constant=float(np.abs(recorded - np.median(recorded)).mean()),
        agrees=agrees,
    )


def _picture(report: ReplayReport, fps: float) -> bytes:
    """A row a dimension, a column an episode: recorded and predicted values over time."""
    import_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    shown = [report.episodes[place] for place in evenly(len(report.episodes), DRAWN)]
    with style.context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(1 + 4.2 * len(shown), 0.9 + 1.15 * len(report.dimensions)), layout="constrained")
        axes = figure.subplots(len(report.dimensions), len(shown), squeeze=False, sharex="col", sharey="row")
        for column, one in enumerate(shown):
            time = np.arange(len(one.recorded)) / fps
            for row, dimension in enumerate(report.dimensions):
                axis = axes[row, column]
                axis.plot(time, one.recorded[:, row], color=INK, linewidth=1.4, label="recorded")
                known = np.isfinite(one.predicted[:, row])
                axis.plot(time[known], one.predicted[known, row], color=SERIES[0], linewidth=1.2, label="predicted")
                for frame in one.observed:
                    axis.axvline(frame / fps, color=LINE, linewidth=0.8, zorder=0)
                axis.spines[["top", "right"]].set_visible(False)
                axis.tick_params(labelsize=8, labelcolor=SOFT)
                if column == 0:
                    unit = f" [{dimension.unit.strip('[]')}]" if dimension.unit else ""
                    axis.set_ylabel(printable(f"{dimension.name}{unit}"), fontsize=8, parse_math=False)
            title = textwrap.shorten(printable(one.instruction), 52, placeholder="...")
            axes[0, column].set_title(f"episode {one.episode}: {title}", fontsize=9, parse_math=False)
            axes[-1, column].set_xlabel("seconds; a grey line: a new chunk begins", fontsize=8)
        axes[0, 0].legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
        buffer = io.BytesIO()
        caption = f"recorded and predicted actions, {report.chosen}"
        figure.savefig(buffer, format="png", dpi=110, metadata={"Description": caption, "Software": None})
    return buffer.getvalue()
