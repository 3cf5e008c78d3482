"""The state of an unfinished run: what continues it bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import TypedDict

from lamp.errors import MismatchError
from lamp.json_files import read_json_as, write_json
from lamp.train.shards import read_shards, read_tensors, shard_names, write_shards, write_tensors

SHARDS = "shards"


class StoredRandomStates(TypedDict):
    """What `lamp.seeding.global_states` returns beside the tensors."""

    numpy: tuple[str, int, int, float]
    python: tuple[int, list[int], float | None]


class StoredState(TypedDict):
    """`state.json`."""

    step: int
    elapsed_s: float
    finished: bool
    averaged: bool
    random: StoredRandomStates
    sampler: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Optimizer, weights, sampler and every random state after `step` optimizer steps."""

    step: int
    elapsed_s: float
    finished: bool
    optimiser: Mapping[str, Tensor]
    raw: Mapping[str, Tensor]
    """The trained parameters as the optimizer knows them."""
    average: Mapping[str, Tensor] | None
    """The averaged weights, where the run averages; they are the ones the checkpoint is used with."""
    random_tensors: Mapping[str, Tensor]
    random_plain: Mapping[str, Any]
    sampler: Mapping[str, Any]
    sharded: bool = False
    """Whether each process has only a part of the tensors above, and writes it itself."""
    shards: Path | None = None
    """Where such parts are; the tensors above are then still to be read."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The trained parameters to use: averaged where the run averages."""
        return self.raw if self.average is None else self.average

    def write(self, folder: Path) -> None:
        """Writes everything but the parts that each process writes itself."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "random.safetensors", self.random_tensors)
        if not self.sharded:
            write_tensors(folder / "optimiser.safetensors", self.optimiser)
        if self.average is not None and not self.sharded:
            write_tensors(folder / "raw.safetensors", self.raw)
        plain = {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "finished": self.finished,
            "averaged": self.average is not None,
            "random": self.random_plain,
            "sampler": self.sampler,
        }
        write_json(folder / "state.json", plain)

    def write_shards(self, folder: Path, group: ProcessGroup | None) -> None:
        """Writes this process's parts; all processes have to."""
        groups = {"raw": self.raw, "average": self.average or {}, "optimiser": self.optimiser}
        tensors = {f"{kind}/{name}": value for kind, named in groups.items() for name, value in named.items()}
        write_shards(folder / SHARDS, tensors, group)

    @staticmethod
    def read(folder: Path, weights: Mapping[str, Tensor]) -> TrainingState:
        """Reads a state; `weights` are the checkpoint's weights to use, which are not stored twice.

        Parts that were written by several processes are left for `read_shards`.
        """
        plain = read_json_as(folder / "state.json", StoredState, "training state")
        averaged, shards = plain["averaged"], folder / SHARDS
        state = TrainingState(
            step=plain["step"],
            elapsed_s=float(plain["elapsed_s"]),
            finished=plain["finished"],
            optimiser={},
            raw=weights,
            average=None,
            random_tensors=read_tensors(folder / "random.safetensors"),
            random_plain=plain["random"],
            sampler=plain["sampler"],
            shards=shards if shards.is_dir() else None,
        )
        if state.shards is not None:
            return state
        return replace(
            state,
            optimiser=read_tensors(folder / "optimiser.safetensors"),
            raw=read_tensors(folder / "raw.safetensors") if averaged else weights,
            average=weights if averaged else None,
        )

    def read_shards(self, parameters: Mapping[str, nn.Parameter], group: ProcessGroup | None) -> TrainingState:
        """Reads what `write_shards` has written, if anything, whole or sharded as these parameters are."""
        if self.shards is None:
            return self
        tensors: dict[str, dict[str, Tensor]] = {"raw": {}, "average": {}, "optimiser": {}}
        for key in shard_names(self.shards):
            kind, _, name = key.partition("/")
            parameter = parameters.get(name.rpartition(":")[0] if kind == "optimiser" else name)
            if parameter is None:
                raise MismatchError(
                    f"{self.shards} holds {name}, which this run does not train; expected the same recipe."
                )
            step = kind == "optimiser" and name.endswith(":step")
            tensors[kind][name] = torch.zeros(()) if step else torch.zeros_like(parameter.detach())
        read_shards(
            self.shards, {f"{kind}/{name}": into for kind in tensors for name, into in tensors[kind].items()}, group
        )
        average = tensors["average"] or None
        return replace(self, raw=tensors["raw"], average=average, optimiser=tensors["optimiser"], shards=None)
