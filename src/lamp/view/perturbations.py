"""`lamp show perturbations`: what plus-style perturbations do to a scene, side by side."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from lamp.benchmark.perturbed import PerturbedSimulators, perturbed
from lamp.benchmark.suites import LiberoSimulators, placement_seed
from lamp.errors import ConfigError
from lamp.view.images import row_of, write_png
from lamp_client.envs.plus_style import ASPECTS, LEVELS

_GAP = 8


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    """Draws the reference camera's view of a LIBERO task under plus-style perturbations, as `lamp evaluate --perturb` has it."""

    out: Path
    """The PNG file."""
    suite: str = "libero_goal"
    """LIBERO suite."""
    task: int = 8
    """Task number."""
    state: int = 0
    """Stored initial state."""
    perturb: tuple[str, ...] = ()
    """Such as `camera=3`; empty for every aspect at `--level`."""
    level: int = 3
    """Level of what is shown by default, 1 to 5."""
    columns: int = 6
    """Pictures in a row."""
    size: int = 224
    """Width and height of a picture [px]."""
    seed: int = 0
    """As in `lamp evaluate`: the same seed draws the same."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS or self.columns < 1:
            raise ConfigError(
                f"level {self.level} and {self.columns} columns: expected 1 to {LEVELS[-1]} and at least 1"
            )


def sheet(config: SheetConfig) -> Path:
    """Renders the pictures, the standard scene first, and returns the file's path."""
    from lamp_client.envs.libero import load_task
    from lamp_client.envs.libero_perturbed import PerturbedLibero, unchanged

    standard = LiberoSimulators(suite=config.suite, image_size=config.size)
    levels = config.perturb or tuple(f"{aspect}={config.level}" for aspect in ASPECTS)
    variants = [variant for variant in perturbed(standard, levels) if isinstance(variant, PerturbedSimulators)]
    draws = {"standard": unchanged, **{variant.label: variant.draw for variant in variants}}
    seed = placement_seed(config.seed, config.suite, config.task, config.state)
    pictures = []
    with PerturbedLibero(load_task(config.suite, config.task), unchanged, image_size=config.size) as env:
        for draw in draws.values():
            env.draw = draw
            env.reset(config.state, seed)
            image = next(iter(env.observe().images.values()))
            instruction = env.instruction if env.effects.instruction else ""
            pictures.append(_with_instruction(image, instruction) if instruction else image)
    caption = f"Plus-style perturbations of {config.suite}, task {config.task}, made by LaMP; not LIBERO-Plus."
    write_png(config.out, _arranged(pictures, list(draws), config.columns), caption)
    return config.out


def _with_instruction(image: UInt8[np.ndarray, "h w 3"], instruction: str) -> UInt8[np.ndarray, "h w 3"]:
    """Writes an instruction over the lower part of an image."""
    sheet = Image.fromarray(image)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    lines = textwrap.wrap(f'"{instruction}"', width=max(8, image.shape[1] // 8))
    top = image.shape[0] - 18 * len(lines) - 8
    pen.rectangle((0, top, image.shape[1], image.shape[0]), fill=(20, 20, 22))
    for index, line in enumerate(lines):
        pen.text((6, top + 3 + 18 * index), line, fill=(240, 240, 236), font=font)
    return np.asarray(sheet)


def _arranged(pictures: list[UInt8[np.ndarray, "h w 3"]], names: list[str], columns: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Rows of pictures with their names below; the last row is filled up with paper."""
    blank = np.full_like(pictures[0], 250)
    rows = []
    for first in range(0, len(pictures), columns):
        shown, captions = pictures[first : first + columns], names[first : first + columns]
        lacking = columns - len(shown) if rows else 0
        rows.append(row_of([*shown, *[blank] * lacking], [*captions, *[""] * lacking], gap=_GAP))
    return np.concatenate(rows)
