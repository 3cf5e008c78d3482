"""A shortcut policy: a small network that sees images, state and the task's NUMBER, and none of its words.

It is the probe of "What Are We Actually Benchmarking in Robot Manipulation?" (arXiv 2606.04233) in small: trained here, in
minutes on a CPU, on the demonstrations that the policy learnt from. A suite that it solves says nothing about language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from lamp.configuration import from_json, to_json
from lamp.data.embodiment import Embodiment
from lamp.data.normalizers import Standardise
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.files import atomic_path
from lamp.json_files import read_json_object, write_json
from lamp.progress import Progress
from lamp.version import code_version
from lamp_client.types import ActionChunk, Observation

DESCRIPTION, WEIGHTS = "lamp.json", "model.safetensors"
FORMAT = "lamp-shortcut"
CHUNK, EXECUTE = 10, 5
SIDE = 64
"""Images are shrunk to this square. [px]"""
SHIFT = 2
"""Training images are shifted by up to so many pixels, the usual augmentation of small convolutional policies. [px]"""
MOST_FRAMES = 20_000
"""Frames kept in memory, of both cameras 0.5 GB; of longer data every so many-th is taken."""


@dataclass(frozen=True, kw_only=True)
class ShortcutTraining:
    """How it is trained."""

    steps: int = 4000
    batch_size: int = 32
    lr: float = 1e-3
    width: int = 256
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ShortcutRecord:
    """What its folder says about it."""

    tasks: tuple[str, ...]
    """Instructions of the data; a task's number is its place. The words go no further."""
    cameras: tuple[str, ...]
    states: Standardise
    actions: Standardise
    embodiment: Embodiment
    state_columns: tuple[int, ...]
    """Where the state's values are in an observation's."""
    training: ShortcutTraining
    frames: int
    data: str
    """The dataset's content hash."""
    fps: float
    loss: float
    """Mean absolute error of the last tenth of the training, in standard deviations of the actions."""
    parameters: int
    chunk: int = CHUNK
    execute: int = EXECUTE
    code: str = field(default_factory=code_version)


class ShortcutNetwork(nn.Module):
    """Three convolutions a camera, joined with the state and the task's number; two hidden layers.

    Args:
        cameras: Number of cameras.
        state: Number of a state's values.
        tasks: Number of tasks.
        outputs: (chunk, width) of what it predicts.
    """

    def __init__(self, cameras: int, state: int, tasks: int, outputs: tuple[int, int], width: int) -> None:
        super().__init__()
        self.outputs, self.tasks = outputs, tasks
        self.eyes = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, 16, 6, stride=4, padding=1), nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
                nn.Flatten(), nn.Linear(32 * (SIDE // 8) ** 2, width // 2), nn.ReLU(),
            )
            for _ in range(cameras)
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(cameras * (width // 2) + state + tasks, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, outputs[0] * outputs[1]),
        )  # fmt: skip

    def forward(
        self, images: UInt8[Tensor, "b c h w 3"], states: Float[Tensor, "b s"], tasks: Tensor
    ) -> Float[Tensor, "b chunk a"]:
        """Predicts normalised chunks; `tasks` are numbers (b,)."""
        pictures = images.permute(1, 0, 4, 2, 3).float() / 127.5 - 1
        seen = [eye(picture) for eye, picture in zip(self.eyes, pictures, strict=True)]
        told = functional.one_hot(tasks, self.tasks).to(states.dtype)
        return self.head(torch.cat([*seen, states, told], dim=1)).unflatten(1, self.outputs)


def shrunk(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "side side 3"]:
    """An image as the network sees it: each pixel the mean of those it covers."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Frames of the demonstrations."""

    images: UInt8[Tensor, "n c side side 3"]
    states: Float32[np.ndarray, "n s"]
    chunks: Float32[np.ndarray, "n chunk a"]
    tasks: Tensor
    """(n,) the task's number of each."""
    names: tuple[str, ...]


def read_samples(data: Path, embodiment: Embodiment) -> tuple[Samples, str, float]:
    """Reads the demonstrations, with the dataset's content hash and rate [1/s].

    Raises:
        DataError: The data cannot be read.
    """
    dataset = embodiment.open(data)
    dataset.check_episodes()
    places = [np.flatnonzero(dataset.fresh(number)) for number in range(len(dataset))]
    every = max(1, -(-sum(map(len, places)) // MOST_FRAMES))
    places = [frames[::every] for frames in places]
    names, tasks = dataset.instruction_index(range(len(dataset)), places)
    images, states, chunks = [], [], []
    with Progress("shortcut", len(dataset), "episodes read") as progress:
        for number, frames in enumerate(places):
            views = [dataset.frames(camera, number, frames) for camera in dataset.cameras]
            images.append(np.stack([[shrunk(image) for image in view] for view in views], axis=1))
            states.append(embodiment.states(dataset, number)[frames])
            chunks.append(embodiment.chunks(dataset, number, CHUNK)[frames])
            progress.update(number + 1)
    samples = Samples(
        images=torch.from_numpy(np.concatenate(images)),
        states=np.concatenate(states),
        chunks=np.concatenate(chunks),
        tasks=torch.from_numpy(tasks),
        names=names,
    )
    return samples, dataset.content, dataset.fps


def train_shortcut(
    data: Path, out: Path, embodiment: Embodiment, training: ShortcutTraining | None = None
) -> ShortcutRecord:
    """Trains the shortcut policy on all episodes of a dataset, and writes its folder at the end.

    Args:
        data: The demonstrations of the policy that is audited.
        out: The folder to write.
        embodiment: How the dataset records its robot.

    Raises:
        ConfigError: No step is to be made.
        DataError: The data cannot be read.
    """
    training = training or ShortcutTraining()
    if training.steps < 1:
        raise ConfigError(f"shortcut steps is {training.steps}; expected at least 1")
    samples, content, fps = read_samples(data, embodiment)
    dataset = embodiment.open(data)
    states = Standardise.fit(samples.states, least=1e-3)
    actions = Standardise.fit(samples.chunks.reshape(-1, samples.chunks.shape[-1]), least=1e-3)
    generator = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(training.seed)
        network = ShortcutNetwork(
            len(dataset.cameras), samples.states.shape[1], len(samples.names), samples.chunks.shape[1:], training.width
        )
    inputs = torch.from_numpy(states.normalise(samples.states).astype(np.float32))
    targets = torch.from_numpy(actions.normalise(samples.chunks).astype(np.float32))
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    losses = []
    with Progress("shortcut", training.steps, "steps") as progress:
        for step in range(training.steps):
            chosen = torch.randint(len(inputs), (training.batch_size,), generator=generator)
            images = shifted(samples.images[chosen], generator)
            loss = functional.l1_loss(network(images, inputs[chosen], samples.tasks[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.update(step + 1)
    record = ShortcutRecord(
        tasks=samples.names,
        cameras=tuple(dataset.cameras),
        states=states,
        actions=actions,
        embodiment=embodiment,
        state_columns=embodiment.state_columns(embodiment.state_features(dataset)),
        training=training,
        frames=len(inputs),
        data=content,
        fps=fps,
        loss=float(np.mean(losses[-max(1, training.steps // 10) :])),
        parameters=sum(weight.numel() for weight in network.parameters()),
    )
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / WEIGHTS) as staged:
        save_file(network.state_dict(), staged)
    write_json(out / DESCRIPTION, {"format": FORMAT, "version": 1, **to_json(record)})
    return record


def shifted(images: UInt8[Tensor, "b c side side 3"], generator: torch.Generator) -> UInt8[Tensor, "b c side side 3"]:
    """Images shifted by up to `SHIFT` pixels, all cameras of a sample alike; what comes in repeats the edge."""
    moves = torch.randint(-SHIFT, SHIFT + 1, (len(images), 2), generator=generator)
    places = torch.arange(SIDE)
    rows = (places + moves[:, :1]).clamp(0, SIDE - 1)
    columns = (places + moves[:, 1:]).clamp(0, SIDE - 1)
    samples = torch.arange(len(images))[:, None, None]
    # Indexing rows and columns together puts them first: (b, side, side, c, 3).
    return images.permute(0, 2, 3, 1, 4)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2, 4)


def read_record(folder: Path) -> ShortcutRecord:
    """Reads what a shortcut policy's folder says.

    Raises:
        DataError: It is none.
    """
    check_shortcut(folder)
    stored = read_json_object(folder / DESCRIPTION, "shortcut policy")
    del stored["format"]
    if stored.pop("version", None) != 1:
        raise DataError(f"{folder} is a shortcut policy of another version; expected version 1: train it again")
    return from_json(ShortcutRecord, stored, where=str(folder / DESCRIPTION))


def is_shortcut(folder: Path) -> bool:
    """Whether a folder holds a shortcut policy."""
    path = folder / DESCRIPTION
    return path.is_file() and read_json_object(path, "checkpoint description").get("format") == FORMAT


def check_shortcut(folder: Path) -> None:
    """
    Raises:
        DataError: The folder holds no shortcut policy.
    """
    if not is_shortcut(folder):
        raise DataError(
            f"{folder} is no shortcut policy; expected the folder `shortcut` that `lamp evaluate --audit` wrote"
        )


class ShortcutPolicy:
    """A trained shortcut policy, as an evaluation asks it (`lamp.benchmark.policies.BatchPolicy`)."""

    uses_motion = False
    foresees = None

    def __init__(self, folder: Path) -> None:
        self.record = record = read_record(folder)
        self.execute = record.execute
        outputs = (record.chunk, record.actions.width)
        self.network = ShortcutNetwork(
            len(record.cameras), record.states.width, len(record.tasks), outputs, record.training.width
        )
        self.network.load_state_dict(load_file(folder / WEIGHTS))
        self.network.eval()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What it says about itself: how its actions are to be read."""
        return {"policy": FORMAT, "fps": self.record.fps, **self.record.embodiment.client_metadata}

    @torch.inference_mode()
    def act_batch(
        self,
        observations: Sequence[Observation],
        noise_seeds: Sequence[tuple[int, ...]],
        foresight: bool = False,
    ) -> list[ActionChunk]:
        """Returns the next actions; nothing is drawn by chance.

        Raises:
            MismatchError: An instruction is none of the demonstrations', or a camera is missing.
        """
        if not observations:
            return []
        record = self.record
        width = record.states.width
        states = np.stack([self._state(one.state, width) for one in observations])
        images = np.stack([[shrunk(self._image(one, camera)) for camera in record.cameras] for one in observations])
        tasks = torch.tensor([self._number(one.instruction) for one in observations])
        normalised = torch.from_numpy(record.states.normalise(states).astype(np.float32))
        predicted = self.network(torch.from_numpy(images), normalised, tasks)
        actions = record.embodiment.recorded(record.actions.invert(predicted.numpy()), states).astype(np.float32)
        return [ActionChunk(actions=chunk) for chunk in actions]

    def _state(self, state: np.ndarray, width: int) -> np.ndarray:
        return state if len(state) == width else state[list(self.record.state_columns)]

    def _image(self, observation: Observation, camera: str) -> np.ndarray:
        if camera not in observation.images:
            has = ", ".join(observation.images)
            raise MismatchError(f"the shortcut policy needs the camera {camera!r}; the observation has {has}")
        return observation.images[camera]

    def _number(self, instruction: str) -> int:
        """The task's number: the instruction is looked up as a whole, and no word of it is read."""
        known = {_spelling(task): number for number, task in enumerate(self.record.tasks)}
        if _spelling(instruction) not in known:
            raise MismatchError(
                f"the shortcut policy has no task {instruction!r}; it was trained on {', '.join(self.record.tasks)}: evaluate "
                "these tasks, or train it on data that have the others"
            )
        return known[_spelling(instruction)]

    def oracle(self) -> ShortcutPolicy:
        """
        Raises:
            MismatchError: Always: there is no motion prior.
        """
        raise MismatchError("a shortcut policy has no motion prior")

    def intervened(self, intervention: object) -> ShortcutPolicy:
        """
        Raises:
            MismatchError: Always: there is no motion prior.
        """
        raise MismatchError("a shortcut policy has no motion prior")


def _spelling(instruction: str) -> str:
    return " ".join(instruction.casefold().split())
