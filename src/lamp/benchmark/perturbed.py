"""Plus-style perturbations in an evaluation: each makes a suite of its own, named so, beside the standard one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lamp.benchmark.suites import PLUS_STYLE, LiberoSimulators, Simulators
from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError
from lamp.json_files import read_json
from lamp_client.envs import Simulator
from lamp_client.envs.perturbations import SampledPerturbation, StandardScene
from lamp_client.envs.plus_style import CATEGORIES, LEVELS, Perturbation, parse


@dataclass(frozen=True, kw_only=True)
class PerturbedSimulators(Simulators):
    """The simulators of a LIBERO suite under a perturbation."""

    standard: LiberoSimulators
    perturbation: Perturbation
    label: str
    """As it was written, such as `camera=3`."""

    suite: str = field(init=False)
    """Different from the standard suite's name, so that no table counts both together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "suite", f"{self.standard.suite} {PLUS_STYLE} {self.label}")

    @property
    def level(self) -> int | None:
        """1 to 5; None where levels differ or are none."""
        _, sign, level = self.label.rpartition("=")
        return int(level) if sign and "+" not in self.label and level.isdigit() else None

    def instructions(self) -> tuple[str, ...]:
        """The standard instruction of every task, in order."""
        return self.standard.instructions()

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        """Draws the perturbation of an episode, with what its line says of it."""
        sampled = self.perturbation.draw(generator, standard)
        named = {"benchmark": PLUS_STYLE, "perturbation": self.label, "category": self.perturbation.category}
        return dataclasses.replace(sampled, numbers={**named, "level": self.level, "drawn": sampled.numbers})

    def make(self, task: int) -> Simulator:
        """Opens the simulator of one task (seconds)."""
        from lamp_client.envs.libero import load_task
        from lamp_client.envs.libero_perturbed import PerturbedLibero

        standard = self.standard
        return PerturbedLibero(
            load_task(standard.suite, task),
            self.draw,
            image_size=standard.image_size,
            render=standard.render,
            placement_shift=standard.placement_shift,
            seed=standard.seed,
        )

    def check_oracle(self, task: int) -> None:
        """As in the standard suite."""
        self.standard.check_oracle(task)

    def expert(self, simulator: Simulator) -> Callable[[], np.ndarray]:
        """The standard suite's expert: it knows where everything is, whatever the cameras show."""
        return self.standard.expert(simulator)


def perturbed(standard: Simulators, perturbations: Sequence[str]) -> tuple[Simulators, ...]:
    """Makes the suites that an evaluation visits.

    Args:
        standard: The unperturbed suite.
        perturbations: Such as `camera=3`, `camera=2+light=4`, `all=3`, `none`, or a JSON file; nothing: the suite as it is.

    Raises:
        ConfigError: Two are the same, or the suite cannot be perturbed.
        LampClientError: One does not exist.
    """
    if not perturbations:
        return (standard,)
    if not isinstance(standard, LiberoSimulators):
        raise ConfigError(f"{standard.suite} cannot be perturbed; expected a suite of LIBERO")
    labels = [label for text in perturbations for label in _each(text)]
    if len(set(labels)) != len(labels):
        raise ConfigError(f"perturbations {', '.join(labels)}: expected none twice")
    return tuple(standard if label == "none" else _variant(standard, label) for label in labels)


def described(variants: Sequence[Simulators]) -> dict[str, Any]:
    """The perturbations in full, for the manifest: a level's meaning may change between versions."""
    return {
        variant.label: {"benchmark": PLUS_STYLE, **to_json(variant.perturbation)}
        for variant in variants
        if isinstance(variant, PerturbedSimulators)
    }


def _each(text: str) -> list[str]:
    """`all=3` is every category at that level, one after another."""
    name, _, level = text.partition("=")
    if name != "all":
        return [text]
    if level not in map(str, LEVELS):
        raise ConfigError(f"perturbation {text!r}: expected all=1 to all={LEVELS[-1]}")
    return [f"{category}={level}" for category in CATEGORIES]


def _variant(standard: LiberoSimulators, label: str) -> PerturbedSimulators:
    if label.endswith(".json"):
        path = Path(label)
        perturbation = from_json(Perturbation, read_json(path, "perturbation"), where=str(path))
        return PerturbedSimulators(standard=standard, perturbation=perturbation, label=path.stem)
    return PerturbedSimulators(standard=standard, perturbation=parse(label), label=label)
