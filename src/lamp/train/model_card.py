"""A model card from a checkpoint's own record: what is written there is in the card, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from lamp.configuration import to_json
from lamp.data.policy_dataset import PolicyScaling
from lamp.hub import HubId
from lamp.model.parameter_count import expected_parameters
from lamp.train.checkpoint_metadata import DataRecord, Description, FlowRecord
from lamp.train.config import LoopConfig

KINDS = {"motion": "the Motion Expert (Stage 1)", "policy": "guidance and Action Expert (Stage 2)"}


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Successes on one task."""

    name: str
    successes: int
    trials: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Success counted by an evaluation of this very checkpoint."""

    suite: str
    successes: int
    trials: int
    interval: tuple[float, float]
    """Wilson's 95% interval of the rate."""
    tasks: tuple[TaskResult, ...]
    settings: tuple[tuple[str, str], ...]
    """How it was measured, as names and values."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a card says that no checkpoint knows."""

    licence: str | None = None
    """Of the weights, by the hub's identifier, such as mit or apache-2.0; None: the card says that none is stated."""
    datasets: tuple[str, ...] = ()
    """Hub ids of what was trained on."""
    results: tuple[Measured, ...] = field(default=())
    repository: str | None = None
    """Where it will be: OWNER/NAME; None: a local folder."""


def model_card(description: Description, about: Publication) -> str:
    """Writes the card: YAML front matter for the hub, and Markdown for people (`templates/model_card.md`)."""
    counts = expected_parameters(description.model)
    parts = {
        "motion_expert": description.model.motion,
        "guidance": description.model.fusion,
        "action_expert": description.model.action,
    }
    key = description.backbone.key or "not known: the weights were not at hand when this was imported"
    backbone = [
        *description.backbone.description.items(),
        ("prompt", f"`{description.backbone.prompt}`"),
        ("key", f"`{key}`"),
    ]
    text = _template().render(
        description=description,
        about=about,
        imported=description.imported,
        front_matter=_front_matter(description, about),
        title=_title(description, about),
        name=about.repository or "FOLDER",
        stage=KINDS[description.kind],
        parameters=counts["total"],
        parts=[
            *([name, f"{counts[name]:,}", _settings(part)] for name, part in parts.items() if part is not None),
            ["total", f"{counts['total']:,}", ""],
        ],
        cameras=[[camera.name, f"{camera.width} x {camera.height}"] for camera in description.backbone.cameras],
        backbone=[[name, _short(value)] for name, value in backbone],
        statistics=_statistics(description.policy.scaling) if description.policy else [],
        bounds=_bounds(description.flow) if description.flow else [],
        datasets=_datasets(description),
        training=_training(description, loop) if (loop := description.training.loop) is not None else [],
    )
    # In Markdown one blank line says what two do; and no file holds half a character.
    return re.sub(r"\n{3,}", "\n\n", text).strip().encode(errors="replace").decode() + "\n"


@cache
def _template() -> Template:
    """Markdown, in which nothing is escaped but what would end a line, a cell or an item of a list."""
    made = Environment(
        loader=PackageLoader("lamp.train"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "line": lambda text: _line(text).replace("<", "\\<"),
        "cell": lambda text: _line(text).replace("|", "\\|"),
        "json": json.dumps,
        "kind": lambda value: type(value).__name__,
        "settings": _settings,
        "successes": _successes,
    }
    return made.get_template("model_card.md")


def _line(text: str) -> str:
    return " ".join(text.splitlines())


def _front_matter(description: Description, about: Publication) -> dict[str, Any]:
    """What the hub reads, or None where it is not known; each value is written in its JSON form, which YAML reads."""
    vlm = description.backbone.description.get("model")
    return {
        "license": about.licence,
        "library_name": "lamp",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "lamp", "vision-language-action", "scene-flow"],
        "datasets": list(about.datasets) or None,
        # A folder on the publisher's machine is no model of the hub's.
        "base_model": vlm if isinstance(vlm, str) and HubId.parse(vlm) else None,
        "model-index": [_index(description, about)] if about.results else None,
    }


def _index(description: Description, about: Publication) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "robotics", "name": "Robot manipulation in simulation"},
            "dataset": {"type": result.suite, "name": result.suite},
            "metrics": [
                {
                    "type": "success_rate",
                    "name": f"success rate over {result.trials} episodes",
                    "value": round(result.successes / result.trials, 4),
                }
            ],
        }
        for result in about.results
    ]
    return {"name": _title(description, about), "results": results}


def _title(description: Description, about: Publication) -> str:
    return about.repository.split("/")[-1] if about.repository else f"LaMP {description.kind}, step {description.step}"


def _settings(config: Any) -> str:
    """A configuration on one line; a nested one by its type's name and its own settings."""
    values = config if isinstance(config, dict) else to_json(config)
    own = [f"{key} {_short(value)}" for key, value in values.items() if key != "type"]
    return f"{values['type']}: {', '.join(own)}" if own else str(values["type"])


def _short(value: Any) -> str:
    match value:
        case {"type": _}:
            return f"({_settings(value)})"
        case {}:
            return json.dumps(value)
        case [*items]:
            return "[" + ", ".join(map(_short, items)) + "]"
        case float():
            return f"{value:.6g}"
    return str(value)


def _statistics(scaling: PolicyScaling) -> list[list[str]]:
    rows = []
    for what, normaliser in (("state, transformed", scaling.state), ("action", scaling.actions)):
        centre, scale = normaliser.centre_and_scale()
        for index, (middle, spread) in enumerate(zip(centre, scale, strict=True)):
            kind = "binary" if index in normaliser.binary else "as it is" if index in normaliser.masked else ""
            rows.append([what, str(index), f"{middle:.6g}", f"{spread:.6g}", kind or type(normaliser).__name__])
    return rows


def _bounds(record: FlowRecord) -> list[list[str]]:
    ends = zip("uvd", record.bounds.low, record.bounds.high, record.clamped, strict=True)
    return [[axis, f"{low:.5g}", f"{high:.5g}", f"{100 * share:.2f}%"] for axis, low, high, share in ends]


def _datasets(description: Description) -> list[tuple[str, DataRecord]]:
    """What each dataset is to this checkpoint, and its record."""
    others = description.policy.others if description.policy else ()
    records = [("", description.data), *(("mixed in", other.data) for other in others)]
    if description.motion_source is not None:
        records.append(
            (f"of the Motion Expert ({description.motion_source.step:,} steps)", description.motion_source.data)
        )
    return records


def _training(description: Description, loop: LoopConfig) -> list[list[str]]:
    return [
        ["steps", f"{description.step:,} of {loop.steps:,}"],
        ["batch size", str(loop.batch_size)],
        ["optimiser", _settings(loop.optimiser)],
        ["smallest learning rate", f"{loop.min_lr:g}"],
        ["gradient clipped at", f"{loop.clip:g}"],
        ["precision", type(loop.precision).__name__],
        ["moving average", "none" if loop.ema is None else f"decay {loop.ema:g}"],
        ["seed", str(loop.seed)],
        ["weights", "the exponential moving average" if description.averaged else "those of the last step"],
        [
            "exactly reproducible",
            "yes" if description.exactly_reproducible else "no: the schedule followed a time budget",
        ],
        ["code", f"`{description.code}`"],
        ["packages", ", ".join(f"{name} {version}" for name, version in description.packages.items())],
        ["sha256 of the weights", f"`{description.weights_sha256}`"],
    ]


def _successes(result: Measured) -> list[list[str]]:
    low, high = (100 * end for end in result.interval)
    rate = f"{100 * result.successes / result.trials:.1f}%, Wilson 95% {low:.1f} to {high:.1f}"
    total = f"**{result.successes}/{result.trials}** ({rate})"
    return [*([task.name, f"{task.successes}/{task.trials}"] for task in result.tasks), ["all", total]]
