"""A run folder in the demo's layout with invented numbers, for looking at the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.sim_worker import write_film
from lamp.json_files import write_json
from lamp.view.images import row_of, write_png
from lamp.view.overlay import OverlayStyle, draw_foresight

TASKS = ("pick up the alphabet soup and place it in the basket", "pick up the cream cheese and place it in the basket")
RATES = {"with_motion": 0.75, "without_motion": 0.55, "replay": 0.35, "wrong_instruction": 0.1, "zero": 0.0}


def moving_grid(steps: int = 9) -> np.ndarray:
    """A 20x20 grid (400, steps, 2) whose middle is carried to the right and up."""
    middle = (np.arange(20) + 0.5) / 20
    start = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
    time = np.linspace(0, 1, steps)
    points = np.repeat(start[:, None], steps, axis=1)
    moved = ((start - [0.45, 0.55]) ** 2).sum(-1) < 0.03
    points[moved] += np.stack([0.3 * time, -0.25 * np.sin(2 * time)], axis=-1)
    return points


def scene(seed: int, at: float) -> np.ndarray:
    """Something that looks a little like a table with objects (256, 256, 3)."""
    image = np.full((256, 256, 3), (198, 178, 148), np.uint8)
    image[:90] = (120, 128, 138)
    for index, colour in enumerate(((190, 60, 50), (60, 110, 180), (230, 200, 80))):
        x = int((50 + 60 * index + 40 * at * (index == seed % 3)) % 220)
        image[140 + 12 * index : 170 + 12 * index, x : x + 26] = colour
    return image


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def _metrics(path: Path, *, motion: bool, gate: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lines = []
    for step in range(10, 1501, 10):
        loss = (1.2 if motion else 0.9) * np.exp(-step / 260) + 0.16 + 0.05 * seed / 7 + 0.04 * generator.normal()
        line: dict[str, Any] = {
            "kind": "train",
            "step": step,
            "elapsed_s": step * 0.16,
            "loss": max(0.05, loss),
            "lr": 6e-4,
            "grad_norm": 1.0 + loss,
        }
        if motion:
            line |= {"samples_per_s": 410.0, "per_axis": {"u": loss * 1.1, "v": loss, "d": loss * 0.8}}
        else:
            line |= {"samples_per_s": 300.0, "per_dim": {"x": loss * 1.2, "y": loss, "gripper": loss * 0.5}}
        # Little is drawn near the data, and nothing in some intervals.
        line |= {"per_tau": {"0.0-0.5": loss * 1.3} | ({"0.5-1.0": loss} if step % 20 else {})}
        line |= {"gate": 0.5 - 0.02 * step / 1500 + 0.001 * generator.normal()} if gate else {}
        lines.append(json.dumps(line))
        if step % 250 == 0:
            held: dict[str, Any] = {"kind": "validation", "step": step, "elapsed_s": step * 0.16, "loss": loss + 0.05}
            if not motion:
                held |= {"action_error": 0.2 + 0.5 * np.exp(-step / 700)}
            if motion:
                held |= {"ade_px_one_sample": 40 * np.exp(-step / 700), "ade_px_zero_motion": 36.2}
                held |= {"ade_px_constant_velocity": 29.5}
            lines.append(json.dumps(held))
    _write_lines(path, lines)


def _flow(path: Path) -> None:
    def errors(ade: float, metres: float | None) -> dict[str, Any]:
        return {"type": "PathErrors", "points": 900, "ade_px": ade, "fde_px": ade * 1.8, "ade_m": metres, "fde_m": None}

    moving = {"one_sample": 20.8, "mean_of_4": 18.2, "zero_motion": 36.2, "constant_velocity": 29.5}
    static = {"one_sample": 1.6, "mean_of_4": 0.9, "zero_motion": 0.02, "constant_velocity": 0.4}
    write_json(path, {
        "type": "FlowReport", "samples": 256, "horizon": 8, "stride": 4, "image_px": 256, "moving_threshold": 0.01,
        "moving": {name: errors(value, value / 900) for name, value in moving.items()},
        "static": {name: errors(value, None) for name, value in static.items()},
    })  # fmt: skip


def _evaluation(folder: Path, films: int) -> None:
    generator = np.random.default_rng(5)
    lines = []
    for condition, rate in RATES.items():
        for task, instruction in enumerate(TASKS):
            for state in range(30, 40):
                success = bool(generator.random() < rate)
                filmed = condition == "with_motion" and state < 30 + films
                video = f"videos/{condition}-{task}-{state}.mp4" if filmed else None
                if video:
                    style = OverlayStyle(scale=2)
                    frames = [scene(task, at) for at in np.linspace(0, 1, 4)]
                    write_film(folder / video, [draw_foresight(frame, moving_grid(), style) for frame in frames])
                record = EpisodeRecord(
                    condition=condition, suite="libero_object", task=task, state=state, repeat=0, placement_seed=state,
                    placement_shift=0.02, placement={"soup_1": [0.01, -0.02]}, noise_seed=(7 + task,), success=success,
                    success_last=success, steps=130 + state if success else 280, instruction=instruction,
                    checkpoint="" if condition in ("replay", "zero") else "8c1f0a6e2b7d4f90", code="0.1.0+g1a2b3c4",
                    packages={"python": "3.11.7", "torch": "2.13.0", "mujoco": "3.17.0"}, wall_s=8.0, render="fast", video=video,
                )  # fmt: skip
                lines.append(record.to_line())
    _write_lines(folder / "episodes.jsonl", lines)
    config = {"suite": "libero_object", "states": "30:40", "placement_shift": 0.02}
    write_json(folder / "run.json", {"format": "lamp-evaluation", "version": 1, "config": config, "planned": 100})


def make_run(run: Path, *, films: int = 1) -> Path:
    """Writes the run folder."""
    _metrics(run / "motion" / "metrics.jsonl", motion=True, gate=False, seed=0)
    _metrics(run / "policy_with" / "metrics.jsonl", motion=False, gate=True, seed=1)
    _metrics(run / "policy_without" / "metrics.jsonl", motion=False, gate=False, seed=6)
    _flow(run / "motion" / "flow.json")
    _evaluation(run / "evaluation", films)
    style = OverlayStyle(scale=2)
    noisy = moving_grid() + np.random.default_rng(0).normal(0, 0.004, (400, 9, 2)).cumsum(axis=1)
    pair = [draw_foresight(scene(0, 0.0), points, style) for points in (noisy, moving_grid())]
    write_png(run / "pictures" / "foresight-1.png", row_of(pair), f"Predicted (left) and true (right): {TASKS[0]}")
    info = {"codebase_version": "v3.0", "fps": 20, "total_episodes": 30, "total_frames": 4211, "total_tasks": 2}
    write_json(run / "data" / "meta" / "info.json", info)
    write_json(run / "data" / "meta" / "lamp.json", {
        "format": "lamp-dataset", "version": 1, "suite": "libero_object", "cameras": ["agentview", "wrist"], "render": "fast",
        "render_every": 2, "placement_shift": 0.02, "action_noise": {"sigma": 0.15}, "collected": {"attempts": 31, "kept": 30},
    })  # fmt: skip
    lines = []
    for index in range(30):
        line = {"episode_index": index, "task": index % 2, "initial_state": index // 2, "length": 130 + index}
        lines.append(json.dumps(line))
    _write_lines(run / "data" / "meta" / "lamp_episodes.jsonl", lines)
    seconds = {"collect": 123.0, "scene flow": 64.0, "features": 42.0, "motion prior": 84.0, "policy with motion": 160.0,
               "policy without motion": 150.0, "evaluate": 178.0, "report": 4.0}  # fmt: skip
    notes = ["Both policies saw the same demonstrations and trained for the same number of steps."]
    facts = {"machine": "2 CPU cores", "started": "2026-01-02 10:00"}
    write_json(run / "summary.json", {"title": "LaMP demo", "seconds": seconds, "notes": notes, "facts": facts})
    return run
