"""The state of an unfinished run: what continues it bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lamp.files import read_json, write_json
from lamp.train.tensors import read_tensors, write_tensors


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

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The trained parameters to use: averaged where the run averages."""
        return self.raw if self.average is None else self.average

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        write_tensors(folder / "optimiser.safetensors", self.optimiser)
        write_tensors(folder / "random.safetensors", self.random_tensors)
        if self.average is not None:
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

    @staticmethod
    def read(folder: Path, weights: Mapping[str, Tensor]) -> TrainingState:
        """Reads a state; `weights` are the checkpoint's weights to use, which are not stored twice."""
        plain = read_json(folder / "state.json", "training state")
        averaged = plain["averaged"]
        return TrainingState(
            step=plain["step"],
            elapsed_s=plain["elapsed_s"],
            finished=plain["finished"],
            optimiser=read_tensors(folder / "optimiser.safetensors"),
            raw=read_tensors(folder / "raw.safetensors") if averaged else weights,
            average=weights if averaged else None,
            random_tensors=read_tensors(folder / "random.safetensors"),
            random_plain=plain["random"],
            sampler=plain["sampler"],
        )
