"""A model card from a checkpoint's own record: what is written there is in the card, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lamp.configuration import to_json
from lamp.data.samples import PolicyScaling
from lamp.hub import HubId
from lamp.model.counting import expected_parameters
from lamp.model.lamp import LaMPConfig
from lamp.train.configs import Imported, LoopConfig
from lamp.train.description import BackboneRecord, DataRecord, Description, FlowRecord, PolicyRecord

KINDS = {"motion": "the Motion Expert (Stage 1)", "policy": "guidance and Action Expert (Stage 2)"}
TASKS_SHOWN = 20


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


def model_card(found: Description, about: Publication) -> str:
    """Writes the card: YAML front matter for the hub, and Markdown for people."""
    parts = [
        _front_matter(found, about),
        f"# {_title(found, about)}\n\n{_lead(found)}",
        f"## Use\n\n{_use(found, about)}",
        f"## Architecture\n\n{_architecture(found.model)}",
        f"## Backbone and cameras\n\n{_backbone(found.backbone)}",
    ]
    if found.policy is not None:
        parts.append(f"## Observations and actions\n\n{_policy(found.policy)}")
    if found.flow is not None:
        parts.append(f"## Scene flow\n\n{_flow(found.flow)}")
    parts += [
        f"## Data\n\n{_data(found)}",
        f"## Training\n\n{_training(found)}",
        f"## Results\n\n{_results(about.results)}",
        f"## Licence\n\n{_licence(found, about)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(found: Description, about: Publication) -> str:
    """YAML, each value in its JSON form, which YAML reads."""
    vlm = found.backbone.description.get("model")
    values: dict[str, Any] = {
        "license": about.licence,
        "library_name": "lamp",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "lamp", "vision-language-action", "scene-flow"],
        "datasets": list(about.datasets) or None,
        # A folder on the publisher's machine is no model of the hub's.
        "base_model": vlm if isinstance(vlm, str) and HubId.parse(vlm) else None,
        "model-index": [_index(found, about)] if about.results else None,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join(["---", *lines, "---"])


def _index(found: Description, about: Publication) -> dict[str, Any]:
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
    return {"name": _title(found, about), "results": results}


def _title(found: Description, about: Publication) -> str:
    return about.repository.split("/")[-1] if about.repository else f"LaMP {found.kind}, step {found.step}"


def _lead(found: Description) -> str:
    counted = expected_parameters(found.model)["total"]
    prior = "with" if found.model.motion else "without"
    what = f"a policy {prior} the motion prior" if found.kind == "policy" else "a motion prior"
    lead = (
        "LaMP is a vision-language-action model: a Motion Expert predicts dense 3-D scene flow, its hidden state guides the "
        "vision and language features, and an Action Expert turns these into a chunk of actions. "
        f"This is {what}: {counted:,} parameters beside the frozen backbone, which is not part of it, after "
        f"{found.step:,} training steps of {KINDS[found.kind]}."
    )
    if isinstance(found.training, Imported):
        at = f" at commit {found.training.revision}" if found.training.revision else ""
        lead += f" The weights were imported from the authors' release `{found.training.source}`{at}."
    return f"{lead}\n\nEverything below is taken from the checkpoint's own record, `lamp.json`."


def _use(found: Description, about: Publication) -> str:
    name = about.repository or "FOLDER"
    if found.kind == "motion":
        return (
            f"```sh\nlamp train policy --recipe RECIPE --data DATA --motion {name} --out OUT\n"
            f"lamp view DATA --checkpoint {name}\n```"
        )
    return (
        f"```sh\nlamp serve {name}\nlamp evaluate --checkpoint {name}\n```\n\n"
        f'```python\nfrom lamp.policy import LaMPPolicy\n\npolicy = LaMPPolicy.from_pretrained("{name}")\n```'
    )


def _architecture(model: LaMPConfig) -> str:
    counts = expected_parameters(model)
    parts = {"motion_expert": model.motion, "guidance": model.fusion, "action_expert": model.action}
    rows = [[name, f"{counts[name]:,}", _settings(to_json(part))] for name, part in parts.items() if part is not None]
    text = _table(["part", "parameters", "settings"], [*rows, ["total", f"{counts['total']:,}", ""]])
    read_at = type(model.hidden_at).__name__
    return f"{text}\n\n{model.solver_steps} solver steps; z_m is read at {read_at}." if model.motion else text


def _settings(values: dict[str, Any]) -> str:
    """A configuration on one line; a nested one by its type's name and its own settings."""
    own = [f"{key} {_short(value)}" for key, value in values.items() if key != "type"]
    return f"{values['type']}: {', '.join(own)}" if own else str(values["type"])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"({_settings(value)})" if "type" in value else json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _backbone(record: BackboneRecord) -> str:
    cameras = [[camera.name, f"{camera.width} x {camera.height}"] for camera in record.cameras]
    facts = [[key, _short(value)] for key, value in record.description.items()]
    key = record.key or "not known: the weights were not at hand when this was imported"
    return "\n\n".join(
        [
            "The backbone is frozen and has to be the same; a checkpoint refuses any other. Cameras in order, the first is the "
            "reference camera:",
            _table(["camera", "recorded at [px]"], cameras),
            _table(["backbone", ""], [*facts, ["prompt", f"`{record.prompt}`"], ["key", f"`{key}`"]]),
        ]
    )


def _policy(record: PolicyRecord) -> str:
    width = record.scaling.actions.width
    lines = [
        f"- state: {record.state_width} values, before the transform ({_settings(to_json(record.scaling.state_transform))})",
        f"- actions: chunks of {record.chunk} with {width} values each, {record.execute} executed before asking again, "
        f"{record.fps:g} a second",
        f"- embodiment: {_settings(to_json(record.embodiment))}",
    ]
    text = "\n".join(lines)
    for other in record.others:
        text += f"\n- also the robot of `{other.data.name}`, at {other.fps:g} a second, with statistics of its own"
    return f"{text}\n\nStatistics, normalised = (value - centre) / scale:\n\n{_statistics(record.scaling)}"


def _statistics(scaling: PolicyScaling) -> str:
    rows = []
    for what, normaliser in (("state, transformed", scaling.state), ("action", scaling.actions)):
        centre, scale = normaliser.centre_and_scale()
        for index, (middle, spread) in enumerate(zip(centre, scale, strict=True)):
            kind = "binary" if index in normaliser.binary else "as it is" if index in normaliser.masked else ""
            rows.append([what, str(index), f"{middle:.6g}", f"{spread:.6g}", kind or type(normaliser).__name__])
    return _table(["", "dimension", "centre", "scale", "by"], rows)


def _flow(record: FlowRecord) -> str:
    rows, columns = record.grid
    ends = zip("uvd", record.bounds.low, record.bounds.high, record.clamped, strict=True)
    table = [[axis, f"{low:.5g}", f"{high:.5g}", f"{100 * share:.2f}%"] for axis, low, high, share in ends]
    return (
        f"{rows} x {columns} points of camera `{record.camera}`, {record.horizon} steps of {record.stride} frames at "
        f"{record.fps:g} frames a second. u and v are fractions of the image, d is in metres.\n\n"
        + _table(["increment", "lower bound", "upper bound", "clamped in training"], table)
    )


def _data(found: Description) -> str:
    others = found.policy.others if found.policy else ()
    records = [("", found.data), *(("mixed in", other.data) for other in others)]
    if found.motion_source is not None:
        records.append((f"of the Motion Expert ({found.motion_source.step:,} steps)", found.motion_source.data))
    return "\n\n".join(_one_dataset(role, data) for role, data in records)


def _one_dataset(role: str, data: DataRecord) -> str:
    told = [f"**{data.name}**{f', {role}' if role else ''}"]
    if data.episodes:
        told.append(
            f"{data.episodes:,} training episodes, {data.frames:,} samples, {len(data.validation_episodes)} held out"
        )
    told.append(f"content hash `{data.dataset or data.fingerprint}`")
    tasks = [f"- {task}" for task in data.tasks[:TASKS_SHOWN]]
    if len(data.tasks) > TASKS_SHOWN:
        tasks.append(f"- and {len(data.tasks) - TASKS_SHOWN} more, in `lamp.json`")
    return "\n".join(["; ".join(told) + ".", *(["", *tasks] if tasks else [])])


def _training(found: Description) -> str:
    if isinstance(found.training, Imported):
        return f"Imported weights; the release's own settings are in `lamp.json`. sha256 of its file: `{found.training.sha256}`."
    loop = found.training.loop
    rows = [
        ["steps", f"{found.step:,} of {loop.steps:,}"],
        ["batch size", str(loop.batch_size)],
        ["optimiser", _settings(to_json(loop.optimiser))],
        *([name, value] for name, value in _loop(loop)),
        ["weights", "the exponential moving average" if found.averaged else "those of the last step"],
        ["exactly reproducible", "yes" if found.exactly_reproducible else "no: the schedule followed a time budget"],
        ["code", f"`{found.code}`"],
        ["packages", ", ".join(f"{name} {version}" for name, version in found.packages.items())],
        ["sha256 of the weights", f"`{found.weights_sha256}`"],
    ]
    return _table(["setting", ""], rows)


def _loop(loop: LoopConfig) -> Iterator[tuple[str, str]]:
    yield "smallest learning rate", f"{loop.min_lr:g}"
    yield "gradient clipped at", f"{loop.clip:g}"
    yield "precision", type(loop.precision).__name__
    yield "moving average", "none" if loop.ema is None else f"decay {loop.ema:g}"
    yield "seed", str(loop.seed)


def _results(results: Sequence[Measured]) -> str:
    if not results:
        return "No measured results were given when this card was written."
    parts = []
    for result in results:
        low, high = result.interval
        rows = [[task.name, f"{task.successes}/{task.trials}"] for task in result.tasks]
        total = (
            f"**{result.successes}/{result.trials}** ({100 * result.successes / result.trials:.1f}%, Wilson 95% "
            f"{100 * low:.1f} to {100 * high:.1f})"
        )
        told = "; ".join(f"{name} {value}" for name, value in result.settings)
        parts.append(f"### {result.suite}\n\n{_table(['task', 'successes'], [*rows, ['all', total]])}\n\n{told}.")
    return "\n\n".join(parts)


def _licence(found: Description, about: Publication) -> str:
    stated = f"The weights: `{about.licence}`." if about.licence else "No licence is stated for these weights."
    if isinstance(found.training, Imported):
        stated += " They were imported from the authors' release, whose own licence applies to them."
    return (
        f"{stated} The backbone is not part of this repository unless it has a folder `vlm`, and keeps its own licence."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        head,
        ["---"] * len(head),
        *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
