"""The report's sections on a run: time, pictures, films, data, settings, and both stages' curves, path errors and gate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.sim_worker import FILM_FPS
from lamp.benchmark.tables import percent
from lamp.data.episode_selection import counted_ranges, number_ranges
from lamp.data.lerobot.video import read_frames, video_info
from lamp.errors import DataError
from lamp.files import path_inside
from lamp.view.charts import Series, line_chart, number
from lamp.view.images import data_uri, evenly, jpeg_uri, read_picture, strip
from lamp.view.page import (
    Block,
    Card,
    Chart,
    Code,
    Columns,
    Facts,
    Figure,
    Gallery,
    Notes,
    Panel,
    Paragraph,
    PathColours,
    Section,
    Shell,
    Table,
    TimeBar,
    duration,
)
from lamp.view.results import PARTS, Curves, FlowErrors, RunResults, failure_kind, folder_label, words

WIDE = 2.4
"""A picture at least this many times as wide as high takes the page's whole width."""


def lead(results: RunResults) -> str:
    """What the page is about, in a sentence."""
    parts = []
    if results.data:
        parts.append(f"{results.data.get('episodes')} demonstrations")
    for trained, one, many in (
        (results.motions, "a motion prior", "motion priors"),
        (results.policies, "a policy", "policies"),
    ):
        if trained:
            longest = max(curves.steps for curves in trained.values())
            parts.append(f"{many if len(trained) > 1 else one} trained for {longest:,} steps")
    if results.records:
        parts.append(f"{sum(map(len, results.records)):,} evaluated episodes")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def headline(results: RunResults, seconds: Mapping[str, float | int]) -> list[Card]:
    """The numbers at the top."""
    cards = []
    for condition in ("with_motion", "without_motion", "policy"):
        row = results.row(condition)
        if row is not None:
            low, high = row.total.interval
            remark = f"{row.total.successes} of {row.total.trials}, 95% {100 * low:.0f} to {100 * high:.0f}%"
            cards.append(Card(f"success {words(condition)}", percent(row.total.value), remark))
    if (pair := results.pair) is not None:
        remark = f"{pair.test} p = {pair.p_value:.2g}"
        cards.append(Card("paired difference", f"{100 * pair.difference:+.0f} points", remark))
    first = next(iter(results.flows.values()), None)
    flow = {row.name: row.moving[0] for row in first.rows} if first else {}
    best, still = flow.get("mean of 4") or flow.get("one sample"), flow.get("zero motion")
    if best is not None and still is not None:
        cards.append(Card("foresight, moving points", f"{best:.1f} px", f"no motion at all: {still:.1f} px"))
    if seconds:
        cards.append(Card("wall time", duration(sum(seconds.values())), "all stages"))
    return cards[:4]


def time(seconds: Mapping[str, float | int]) -> Section | None:
    """Where the time went; None where that was not recorded."""
    bar = TimeBar({words(name): value for name, value in seconds.items()})
    return Section(anchor="time", title="Time", blocks=[Panel([bar])]) if bar.parts else None


def foresight(pictures: Sequence[tuple[Path, str]]) -> Section | None:
    """What the motion prior expects to happen; None without pictures."""
    if not pictures:
        return None
    figures = []
    for path, caption in pictures:
        image = read_picture(path)
        full = len(pictures) == 1 or image.shape[1] >= WIDE * image.shape[0]
        figures.append(Figure(source=jpeg_uri(image, quality=90), alt=caption, caption=caption, full=full))
    return Section(anchor="foresight", title="Foresight", blocks=[PathColours(), Gallery(figures, broad=True)])


def episodes(results: RunResults, max_films: int) -> Section | None:
    """Films of the policy with its foresight drawn over them, a success and a failure first; None where none was filmed."""
    filmed = [
        (path, record)
        for folder, records in zip(results.folders, results.records, strict=True)
        for record in records
        if record.video and (path := path_inside(folder, record.video, "film of an episode")).is_file()
        if path.suffix.lower() == ".mp4"
    ]
    if not filmed:
        return None
    # Failures teach as much as successes: the films shown hold some of each, as far as there are.
    wins = [item for item in filmed if item[1].success]
    losses = [item for item in filmed if not item[1].success]
    lost = min(len(losses), max(max_films // 3, max_films - len(wins)))
    # One of each comes first, for who looks at two only; then both in turns.
    shown = [wins[: max_films - lost], losses[:lost]]
    chosen = [item for pair in zip_longest(*shown) for item in pair if item is not None]
    films, strips = [], []
    for index, (path, record) in enumerate(chosen):
        caption = {
            "caption": record.instruction,
            "remark": f"{words(record.condition)}, task {record.task}, state {record.state}, {record.steps} steps"
            + (f"; {kind}" if not record.success and (kind := failure_kind(record)) else ""),
            "success": record.success,
        }
        frames = _frames(path, 3)
        poster = "" if frames is None else jpeg_uri(frames[len(frames) // 2])
        source = data_uri(path.read_bytes(), ".mp4")
        films.append(Figure(source=source, film=True, poster=poster, **caption))
        if index < 3:
            strips.append(Figure(source=_strip(path), alt="episode strip", full=True, **caption))
    about = (
        "Agent view at twice real time, with the foresight of the chunk being executed. "
        f"{len(chosen)} of {len(filmed)} filmed episodes."
    )
    blocks = [Gallery(films), Gallery(strips, broad=True)]
    return Section(anchor="episodes", title="Episodes", about=about, blocks=blocks)


def _frames(path: Path, shown: int) -> np.ndarray | None:
    """Frames spread over a film; None where it cannot be read."""
    try:
        return read_frames(path, evenly(video_info(path).frames, shown), FILM_FPS)
    except DataError:
        return None


def _strip(path: Path) -> str:
    frames = _frames(path, 8)
    if frames is None:
        return ""
    return jpeg_uri(strip(list(frames[:, ::2, ::2] if frames.shape[1] > 300 else frames)))


def data(results: RunResults) -> Section | None:
    """Facts of the demonstrations; None where neither they nor what each stage saw are known."""
    blocks: list[Block] = [Panel([Facts(results.data)])] if results.data else []
    rows = [
        [
            words(name),
            one.name,
            *map(counted_ranges, (one.stage_1, one.stage_2)),
            counted_ranges(one.in_both),
            counted_ranges(one.held_out),
        ]
        for name, stages in results.stages.items()
        for one in stages
    ]
    if rows:
        head = ["policy", "dataset", "stage 1 (motion)", "stage 2 (actions)", "in both", "held out"]
        about = "Episodes that each stage was trained on: of those in both, the prior knows nothing that the policy does not."
        blocks.append(Panel([Table(head, rows), Paragraph(about, "about")], "Episodes of each stage"))
    return Section(anchor="data", title="Data", blocks=blocks) if blocks else None


def configuration(
    named: Mapping[str, Any], results: RunResults, facts: Mapping[str, Any], command: str = ""
) -> Section | None:
    """The command that repeats the run, resolved settings and versions; None where nothing is known.

    Args:
        command: Empty where it was not noted.
    """
    known = dict(facts)
    if versions := _distinct(record.code for record in results.episodes):
        known["code"] = versions
    if packages := {name: version for record in results.episodes for name, version in record.packages.items()}:
        known["packages"] = packages
    blocks: list[Block] = [Panel([Shell(command)], "To repeat it")] if command else []
    blocks += [Panel([Facts(known)])] if known else []
    blocks += [Code(name, value) for name, value in named.items()]
    return Section(anchor="configuration", title="Configuration and versions", blocks=blocks) if blocks else None


def notes(results: RunResults, given: Sequence[str]) -> Section | None:
    """What the reader should know before quoting a number; None where there is nothing."""
    items = [*given, *_own_notes(results)]
    return Section(anchor="notes", title="Notes", blocks=[Notes(items)]) if items else None


GLOSSARY = {
    "motion prior": "the Motion Expert, which predicts from an image and an instruction how points of the scene will move; with "
    "motion and without motion are the same policy with it and without it",
    "scene flow": "where a grid of points in the image goes in space over the next frames",
    "average displacement error": "the mean distance between predicted and true positions of a point, in pixels of a 256-pixel "
    "image; the final displacement error is the distance at the last moment",
    "moving, static": "a point moves where its true path leaves its start by more than 1% of the image",
    "95% interval": "Wilson's: rates within it are compatible with what was counted; few episodes make it wide",
    "p": "how often chance alone would make a difference at least as large; conditions are compared on the same episodes",
    "replay": "a control: one recorded expert episode of the task, repeated blindly",
    "zero": "a control: no action at all",
    "wrong instruction": "a control: the policy gets another task's instruction, and should fail if it heeds it",
    "held out": "demonstrations that were not trained on",
    "gate": "a learnt number that scales what the motion prior adds; its size is no test of its use",
    "chunk": "the actions that a policy gives at once, of which the first few are executed before the next request",
}


def glossary(results: RunResults) -> Section | None:
    """What the page's words mean; None on a page without results."""
    if not (results.records or results.policies or results.motions or results.flows):
        return None
    return Section(anchor="glossary", title="Words", blocks=[Facts(GLOSSARY)])


def unfinished(results: RunResults) -> list[str]:
    """What of the run is not done yet, a sentence each."""
    sentences = [
        f"{folder_label(folder)}: {len(records)} of {planned} planned episodes are done, and rates may still change"
        for folder, records, planned in zip(results.folders, results.records, results.planned, strict=True)
        if len(records) < planned
    ]
    for name, curves in {**results.motions, **results.policies}.items():
        if curves.planned is not None and curves.steps < curves.planned:
            sentences.append(f"{words(name)}: step {curves.steps:,} of {curves.planned:,}")
    return sentences


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _own_notes(results: RunResults) -> list[str]:
    items = []
    for records in results.records:
        items += _scene_notes(records)
    if len({record.code for record in results.episodes}) > 1:
        versions = _distinct(record.code for record in results.episodes)
        items.append(f"The episodes were run by several versions of the code: {versions}.")
    redone = sum(record.attempt > 1 for record in results.episodes)
    if redone:
        were = "s were" if redone > 1 else " was"
        items.append(f"{redone} episode{were} started again after a simulator process died.")
    trials = [row.total.trials for table in results.tables for row in table.rows]
    if trials and max(trials) < 100:
        items.append(
            f"At most {max(trials)} episodes a condition: differences inside the intervals are no evidence either way."
        )
    if results.flows:
        items.append(
            "Foresight errors are of full sampling; the policy itself reads the prior's hidden state after one step of ten."
        )
    return items


def _scene_notes(records: Sequence[EpisodeRecord]) -> list[str]:
    if not records:
        return []
    suites = _distinct(record.suite for record in records)
    states = number_ranges(sorted({record.state for record in records}))
    items = [f"{suites}: stored initial states {states}; success counts if the goal held at any step."]
    shift = max(record.placement_shift for record in records)
    if shift:
        items.append(
            f"Free-standing objects were displaced by up to {100 * shift:g} cm along x and y, "
            "which the standard protocol does not do: these rates cannot be compared with published ones."
        )
    if any(record.render != "exact" for record in records):
        items.append(
            "Images were rendered without multisampling and reflections (`fast`), unlike the standard protocol's."
        )
    if any(record.condition == "replay" for record in records):
        items.append("Replay repeats one expert episode of each task blindly: what it solves needs no perception.")
    return items


def motion_prior(results: RunResults) -> Section | None:
    """The first stage: its curves and how far its paths are from the true ones; None where neither is there."""
    several = len(results.motions.keys() | results.flows.keys()) > 1
    blocks: list[Block] = []
    for name, curves in results.motions.items():
        blocks += _motion_curves(results, curves, f"{words(name)}: " if several else "")
    for name, errors in results.flows.items():
        blocks.append(_path_errors(errors, f": {words(name)}" if several else ""))
    about = "Stage 1: flow matching on scene flow (Eq. 3)."
    return Section(anchor="motion", title="Motion prior", about=about, blocks=blocks) if blocks else None


def _motion_curves(results: RunResults, curves: Curves, prefix: str) -> list[Block]:
    errors = [
        Series(
            name=words(name.removeprefix("ade_px_")),
            points=curves.values("validation", name),
            colour=results.colour(name.removeprefix("ade_px_")),
            marked=True,
        )
        for name in curves.names("validation", "ade_px_")
    ]
    paths = line_chart(
        errors, x_label="step", y_label="mean error in px of 256", label="error of predicted paths over training"
    )
    named = bool(curves.entries("train", "per_axis"))
    axes = [
        Series(
            name=axis,
            points=curves.values("train", "per_axis", "uvd"[index] if named else index),
            colour=PARTS[index],
            smooth=True,
        )
        for index, axis in enumerate(("du, across", "dv, down", "dd, depth"))
    ]
    norm = [Series(name="gradient norm", points=curves.values("train", "grad_norm"), colour=7, smooth=True)]
    charts = {
        "Loss": _log_chart(_losses(curves), "motion loss", "motion loss over training"),
        "Held-out paths of moving points": paths,
        "Loss by axis": _log_chart(axes, "loss by axis", "motion loss by axis"),
        "Loss by flow time (0: noise, 1: data)": _entries(curves, "per_tau", "motion loss by flow time"),
        "Gradient norm": _log_chart(norm, "gradient norm", "motion gradient norm"),
    }
    rate = [value for _, value in curves.values("train", "samples_per_s")]
    pace = f", {np.median(rate):.0f} samples a second" if rate else ""
    return [
        Columns([Panel([chart], prefix + title) for title, chart in charts.items()]),
        Paragraph(f"{prefix}{curves.steps:,} steps in {duration(curves.seconds)}{pace}.", "about"),
    ]


def _log_chart(series: list[Series], y_label: str, label: str) -> Chart | None:
    return line_chart(series, x_label="step", y_label=y_label, label=label, log=True)


def _losses(curves: Curves, prefix: str = "", colour: int = 0) -> list[Series]:
    training, held_out = curves.values("train", "loss"), curves.values("validation", "loss")
    return [
        Series(name=f"{prefix}training", points=training, colour=colour, smooth=True),
        Series(name=f"{prefix}held out", points=held_out, colour=colour, marked=True, dashed=True),
    ]


def _entries(curves: Curves, metric: str, label: str) -> Chart | None:
    """A line for each entry of a metric that has names for them; None in older runs."""
    lines = [
        Series(name=entry, points=curves.values("train", metric, entry), colour=PARTS[index % len(PARTS)], smooth=True)
        for index, entry in enumerate(curves.entries("train", metric))
    ]
    return _log_chart(lines, "loss", label)


def _path_errors(errors: FlowErrors, suffix: str) -> Panel:
    head = [
        "prediction",
        "moving, mean",
        "moving, at the end",
        "moving, in space",
        "static, mean",
        "static, at the end",
    ]
    cells = [
        [words(row.name), *map(_px, row.moving), _length(row.moving_mm, 1, "mm"), *map(_px, row.static)]
        for row in errors.rows
    ]
    known = [(row.moving[0], index) for index, row in enumerate(errors.rows) if row.moving[0] is not None]
    size, threshold = errors.facts.get("image_px", 256), errors.facts.get("moving_threshold", 0.01)
    about = (
        f"Held-out episodes, {errors.facts.get('samples', 'some')} frames; pixels of a {size}-pixel image. A point moves when "
        f"its true path leaves its start by more than {threshold:.0%} of the image. Zero motion and constant velocity need no "
        "network."
    )
    table = Table(head, cells, best=min(known)[1] if known else None)
    return Panel([table, Paragraph(about, "about")], f"Error of predicted paths{suffix}")


def _px(value: float | None) -> str:
    return _length(value, 2, "px")


def _length(value: float | None, digits: int, unit: str) -> str:
    return "-" if value is None else f"{value:.{digits}f} {unit}"


def policy(results: RunResults) -> Section | None:
    """The second stage: loss curves and the gate; None without one."""
    if not results.policies:
        return None
    losses = [
        series
        for name, curves in results.policies.items()
        for series in _losses(curves, f"{words(name)}, ", results.colour(name))
    ]
    gates = _by_policy(results, "train", "gate")
    gate = line_chart(gates, x_label="step", y_label="gate", label="gate over training")
    held_out = _by_policy(results, "validation", "action_error", marked=True)
    error = line_chart(held_out, x_label="step", y_label="mean error, normalised", label="error of held-out actions")
    norms = _by_policy(results, "train", "grad_norm", smooth=True)
    first, curves = next(iter(results.policies.items()))
    charts = {
        "Loss": _log_chart(losses, "action loss", "action loss over training"),
        "Held-out actions": error,
        f"Loss by action dimension, {words(first)}": _entries(curves, "per_dim", "loss by dimension"),
        "Gradient norm": _log_chart(norms, "gradient norm", "policy gradient norm"),
        "Motion gate": gate,
    }
    blocks: list[Block] = [Columns([Panel([chart], title) for title, chart in charts.items()])]
    if gate is not None:
        last = next(series.points[-1][1] for series in gates if series.points)
        text = f"The gate, which scales the motion prior's contribution, ends at {number(last)}."
        blocks.append(Paragraph(f"{text} Its size is no test of the prior's use.", "about"))
    for name, curves in results.policies.items():
        blocks.append(Paragraph(f"{words(name)}: {curves.steps:,} steps in {duration(curves.seconds)}.", "about"))
    about = "Stage 2: flow matching on action chunks (Eq. 5), backbone and motion prior frozen."
    return Section(anchor="policy", title="Policy", about=about, blocks=blocks)


def _by_policy(
    results: RunResults, kind: str, metric: str, *, marked: bool = False, smooth: bool = False
) -> list[Series]:
    """One line a policy."""
    return [
        Series(
            name=words(name),
            points=curves.values(kind, metric),
            colour=results.colour(name),
            marked=marked,
            smooth=smooth,
        )
        for name, curves in results.policies.items()
    ]
