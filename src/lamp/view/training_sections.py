"""The report's sections on training: curves of both stages, errors of predicted paths, the gate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lamp.view.charts import Series, line_chart, number
from lamp.view.page import Block, Chart, Columns, Panel, Paragraph, Section, Table, absent, duration
from lamp.view.results import Curves, FlowErrors, RunResults, colour_of, words


def motion_prior(results: RunResults) -> Section:
    """The first stage: its curves and how far its paths are from the true ones."""
    several = len(results.motions.keys() | results.flows.keys()) > 1
    blocks: list[Block] = []
    for name, curves in results.motions.items():
        blocks += _motion_curves(curves, f"{words(name)}: " if several else "")
    if not blocks:
        blocks.append(absent("No training of the motion prior in this run."))
    for name, errors in results.flows.items():
        blocks.append(_path_errors(errors, f": {words(name)}" if several else ""))
    if not results.flows:
        blocks.append(absent("The errors of predicted paths were not measured in this run."))
    about = "Stage 1: flow matching on scene flow (Eq. 3)."
    return Section(anchor="motion", title="Motion prior", about=about, blocks=blocks)


def _motion_curves(curves: Curves, prefix: str) -> list[Block]:
    errors = [
        Series(
            name=words(name.removeprefix("ade_px_")),
            points=curves.values("validation", name),
            colour=colour_of(name.removeprefix("ade_px_"), index),
            marked=True,
        )
        for index, name in enumerate(curves.names("validation", "ade_px_"))
    ]
    paths = line_chart(
        errors, x_label="step", y_label="mean error in px of 256", label="error of predicted paths over training"
    )
    named = bool(curves.entries("train", "per_axis"))
    axes = [
        Series(
            name=axis,
            points=curves.values("train", "per_axis", "uvd"[index] if named else index),
            colour=(0, 2, 3)[index],
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
        Series(name=entry, points=curves.values("train", metric, entry), colour=index % 8, smooth=True)
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


def policy(results: RunResults) -> Section:
    """The second stage: loss curves and the gate."""
    if not results.policies:
        return Section(anchor="policy", title="Policy", blocks=[absent("No training of a policy in this run.")])
    losses = [
        series
        for index, (name, curves) in enumerate(results.policies.items())
        for series in _losses(curves, f"{words(name)}, ", colour_of(name, index))
    ]
    gates = _by_policy(results.policies, "train", "gate")
    gate = line_chart(gates, x_label="step", y_label="gate", label="gate over training")
    held_out = _by_policy(results.policies, "validation", "action_error", marked=True)
    error = line_chart(held_out, x_label="step", y_label="mean error, normalised", label="error of held-out actions")
    norms = _by_policy(results.policies, "train", "grad_norm", smooth=True)
    first, curves = next(iter(results.policies.items()))
    charts = {
        "Loss": _log_chart(losses, "action loss", "action loss over training"),
        "Held-out actions": error,
        f"Loss by action dimension, {words(first)}": _entries(curves, "per_dim", "loss by dimension"),
        "Gradient norm": _log_chart(norms, "gradient norm", "policy gradient norm"),
        "Motion gate": gate,
    }
    blocks: list[Block] = [Columns([Panel([chart], title) for title, chart in charts.items()])]
    if gate is None:
        blocks.append(absent("No gate was logged: the policies of this run have no motion prior."))
    else:
        last = next(series.points[-1][1] for series in gates if series.points)
        text = f"The gate, which scales the motion prior's contribution, ends at {number(last)}."
        blocks.append(Paragraph(f"{text} Its size is no test of the prior's use.", "about"))
    for name, curves in results.policies.items():
        blocks.append(Paragraph(f"{words(name)}: {curves.steps:,} steps in {duration(curves.seconds)}.", "about"))
    about = "Stage 2: flow matching on action chunks (Eq. 5), backbone and motion prior frozen."
    return Section(anchor="policy", title="Policy", about=about, blocks=blocks)


def _by_policy(
    policies: Mapping[str, Curves], kind: str, metric: str, *, marked: bool = False, smooth: bool = False
) -> list[Series]:
    """One line a policy."""
    return [
        Series(
            name=words(name),
            points=curves.values(kind, metric),
            colour=colour_of(name, index),
            marked=marked,
            smooth=smooth,
        )
        for index, (name, curves) in enumerate(policies.items())
    ]
