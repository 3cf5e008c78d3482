"""The report's sections on training: curves of both stages, errors of predicted paths, the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamp.view import pages
from lamp.view.charts import Series, duration, line_chart, number
from lamp.view.evidence import Curves, Evidence, FlowRow
from lamp.view.pages import Section
from lamp.view.wording import colour_of, words


def motion(found: Evidence) -> Section:
    """The first stage: its curves and how far its paths are from the true ones."""
    several = len(found.motions.keys() | found.flows.keys()) > 1
    body = "".join(_motion_curves(curves, words(name) if several else "") for name, curves in found.motions.items())
    body = body or pages.absent("No training of the motion prior in this run.")
    tables = [
        _flow_table(errors.rows, errors.facts, words(name) if several else "") for name, errors in found.flows.items()
    ]
    body += "".join(tables) or pages.absent("The errors of predicted paths were not measured in this run.")
    return Section(
        anchor="motion", title="Motion prior", about="Stage 1: flow matching on scene flow (Eq. 3).", body=body
    )


def _loss_series(curves: Curves, name: str = "", colour: int = 0) -> list[Series]:
    before = f"{name}, " if name else ""
    return [
        Series(name=f"{before}training", points=curves.values("train", "loss"), colour=colour, smooth=True),
        Series(
            name=f"{before}held out",
            points=curves.values("validation", "loss"),
            colour=colour,
            marked=True,
            dashed=True,
        ),
    ]


def _motion_curves(curves: Curves, name: str = "") -> str:
    loss = line_chart(
        _loss_series(curves), x_label="step", y_label="motion loss", label="motion loss over training", log=True
    )
    errors = [
        Series(
            name=words(name.removeprefix("ade_px_")),
            points=curves.values("validation", name),
            colour=colour_of(name.removeprefix("ade_px_"), index),
            marked=True,
        )
        for index, name in enumerate(curves.names("validation", "ade_px_"))
    ]
    drawn = line_chart(
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
    split = line_chart(axes, x_label="step", y_label="loss by axis", label="motion loss by axis", log=True)
    norm = Series(name="gradient norm", points=curves.values("train", "grad_norm"), colour=7, smooth=True)
    pull = line_chart([norm], x_label="step", y_label="gradient norm", label="motion gradient norm", log=True)
    times = _entries(curves, "per_tau", "motion loss by flow time")
    shown = [
        ("Loss", loss),
        ("Held-out paths of moving points", drawn),
        ("Loss by axis", split),
        ("Loss by flow time (0: noise, 1: data)", times),
        ("Gradient norm", pull),
    ]
    before = f"{name}: " if name else ""
    return pages.panels([pages.panel(chart, before + title) for title, chart in shown if chart]) + _pace(curves, before)


def _entries(curves: Curves, metric: str, label: str) -> str:
    """A line for each entry of a metric that has names for them; nothing in older runs."""
    lines = [
        Series(name=entry, points=curves.values("train", metric, entry), colour=index % 8, smooth=True)
        for index, entry in enumerate(curves.entries("train", metric))
    ]
    return line_chart(lines, x_label="step", y_label="loss", label=label, log=True)


def _pace(curves: Curves, before: str = "") -> str:
    rate = [value for _, value in curves.values("train", "samples_per_s")]
    pace = f", {np.median(rate):.0f} samples a second" if rate else ""
    return pages.paragraph(f"{before}{curves.steps:,} steps in {duration(curves.seconds)}{pace}.", "about")


def _flow_table(rows: Sequence[FlowRow], facts: Mapping[str, Any], name: str = "") -> str:
    head = [
        "prediction",
        "moving, mean",
        "moving, at the end",
        "moving, in space",
        "static, mean",
        "static, at the end",
    ]
    cells = [
        [
            words(row.name),
            _px(row.moving[0]),
            _px(row.moving[1]),
            _mm(row.moving_mm),
            _px(row.static[0]),
            _px(row.static[1]),
        ]
        for row in rows
    ]
    known = [(row.moving[0], index) for index, row in enumerate(rows) if row.moving[0] is not None]
    size, threshold = facts.get("image_px", 256), facts.get("moving_threshold", 0.01)
    said = (
        f"Held-out episodes, {facts.get('samples', 'some')} frames; pixels of a {size}-pixel image. A point moves when its true "
        f"path leaves its start by more than {threshold:.0%} of the image. Zero motion and constant velocity need no network."
    )
    body = pages.table(head, cells, best=min(known)[1] if known else None) + pages.paragraph(said, "about")
    return pages.panel(body, f"Error of predicted paths{': ' if name else ''}{name}")


def _px(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} px"


def _mm(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} mm"


def policy(found: Evidence) -> Section:
    """The second stage: loss curves and the gate."""
    about = "Stage 2: flow matching on action chunks (Eq. 5), backbone and motion prior frozen."
    if not found.policies:
        return Section(anchor="policy", title="Policy", body=pages.absent("No training of a policy in this run."))
    losses = [
        series for index, (name, curves) in enumerate(found.policies.items())
        for series in _loss_series(curves, words(name), colour_of(name, index))
    ]  # fmt: skip
    gates = [
        Series(name=words(name), points=curves.values("train", "gate"), colour=colour_of(name, index))
        for index, (name, curves) in enumerate(found.policies.items())
    ]
    gate = line_chart(gates, x_label="step", y_label="gate", label="gate over training")
    loss = line_chart(losses, x_label="step", y_label="action loss", label="action loss over training", log=True)
    last = [series.points[-1][1] for series in gates if series.points]
    said = ""
    if last:
        said = f"The gate, which scales the motion prior's contribution, ends at {number(last[0])}. "
        said += "Its size is no test of the prior's use."
    first = next(iter(found.policies))
    charts = [
        ("Loss", loss),
        ("Held-out actions", _held_out_actions(found.policies)),
        (f"Loss by action dimension, {words(first)}", _entries(found.policies[first], "per_dim", "loss by dimension")),
        ("Gradient norm", _gradients(found.policies)),
        ("Motion gate", gate),
    ]
    shown = pages.panels([pages.panel(chart, title) for title, chart in charts if chart])
    missing = "" if gate else pages.absent("No gate was logged: the policies of this run have no motion prior.")
    pace = "".join(
        pages.paragraph(f"{words(name)}: {curves.steps:,} steps in {duration(curves.seconds)}.", "about")
        for name, curves in found.policies.items()
    )
    return Section(
        anchor="policy",
        title="Policy",
        about=about,
        body=shown + missing + (pages.paragraph(said, "about") if said else "") + pace,
    )


def _held_out_actions(policies: Mapping[str, Curves]) -> str:
    lines = [
        Series(
            name=words(name),
            points=curves.values("validation", "action_error"),
            colour=colour_of(name, index),
            marked=True,
        )
        for index, (name, curves) in enumerate(policies.items())
    ]
    return line_chart(lines, x_label="step", y_label="mean error, normalised", label="error of held-out actions")


def _gradients(policies: Mapping[str, Curves]) -> str:
    lines = [
        Series(name=words(name), points=curves.values("train", "grad_norm"), colour=colour_of(name, index), smooth=True)
        for index, (name, curves) in enumerate(policies.items())
    ]
    return line_chart(lines, x_label="step", y_label="gradient norm", label="policy gradient norm", log=True)
