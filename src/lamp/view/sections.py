"""The report's remaining sections: what it is about, where the time went, data, configuration, and what to be careful about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.tables import percent
from lamp.view import pages
from lamp.view.charts import Number, duration, time_bar
from lamp.view.evidence import Evidence, spans
from lamp.view.pages import Section
from lamp.view.wording import words


def lead(found: Evidence) -> str:
    """A sentence that says what the page is about."""
    parts = []
    if found.data:
        parts.append(f"{found.data.get('episodes')} demonstrations")
    if found.motions:
        longest = max(curves.steps for curves in found.motions.values())
        kinds = "motion priors" if len(found.motions) > 1 else "a motion prior"
        parts.append(f"{kinds} trained for {longest:,} steps")
    if found.policies:
        longest = max(curves.steps for curves in found.policies.values())
        parts.append(f"{'policies' if len(found.policies) > 1 else 'a policy'} trained for {longest:,} steps")
    if found.records:
        parts.append(f"{sum(map(len, found.records)):,} evaluated episodes")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def headline(found: Evidence, seconds: Mapping[str, Number]) -> str:
    """The numbers at the top."""
    items = []
    for condition in ("with_motion", "without_motion", "policy"):
        row = found.row(condition)
        if row is not None:
            low, high = row.total.interval
            said = f"{row.total.successes} of {row.total.trials}, 95% {100 * low:.0f} to {100 * high:.0f}%"
            items.append((f"success {words(condition)}", percent(row.total.value), said))
    if found.pair is not None:
        items.append(
            (
                "paired difference",
                f"{100 * found.pair.difference:+.0f} points",
                f"{found.pair.test} p = {found.pair.p_value:.2g}",
            )
        )
    first = next(iter(found.flows.values()), None)
    flow = {row.name: row.moving[0] for row in first.rows} if first else {}
    best, still = flow.get("mean of 4") or flow.get("one sample"), flow.get("zero motion")
    if best is not None and still is not None:
        items.append(("foresight, moving points", f"{best:.1f} px", f"no motion at all: {still:.1f} px"))
    if seconds:
        items.append(("wall time", duration(sum(seconds.values())), "all stages"))
    return pages.cards(items[:4])


def time(seconds: Mapping[str, Number]) -> Section:
    """Where the time went."""
    body = (
        pages.panel(time_bar([(words(name), value) for name, value in seconds.items()]))
        if seconds
        else pages.absent("This run did not record its stages' times.")
    )
    return Section(anchor="time", title="Time", body=body)


def data(found: Evidence) -> Section:
    """Facts of the demonstrations."""
    body = (
        pages.panel(pages.facts(found.data))
        if found.data
        else pages.absent("The dataset is not part of this run's folder.")
    )
    return Section(anchor="data", title="Data", body=body)


def configuration(named: Mapping[str, Any], found: Evidence, facts: Mapping[str, Any]) -> Section:
    """Resolved settings and versions."""
    versions = _only(record.code for record in _all(found))
    packages: dict[str, str] = {}
    for record in _all(found):
        packages.update(record.packages)
    known = {**facts, **({"code": versions} if versions else {}), **({"packages": packages} if packages else {})}
    body = (pages.panel(pages.facts(known)) if known else "") + "".join(
        pages.code(name, value) for name, value in named.items()
    )
    if not body:
        body = pages.absent("No configuration was found beside this run.")
    return Section(anchor="configuration", title="Configuration and versions", body=body)


def honest(found: Evidence, given: Sequence[str]) -> Section:
    """What the reader should know before quoting a number."""
    told = [*given, *_own_notes(found)]
    return Section(anchor="notes", title="Notes", body=pages.notes(told) if told else pages.absent("None."))


def _all(found: Evidence) -> list[EpisodeRecord]:
    return [record for records in found.records for record in records]


def _only(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _own_notes(found: Evidence) -> list[str]:
    notes = []
    for folder, records, planned in zip(found.folders, found.records, found.planned, strict=True):
        if len(records) < planned:
            notes.append(
                f"{folder.name}: only {len(records)} of {planned} planned episodes are done; rates may still change."
            )
        notes += _scene_notes(records)
    records = _all(found)
    if len({record.code for record in records}) > 1:
        notes.append(
            f"The episodes were run by several versions of the code: {_only(record.code for record in records)}."
        )
    redone = sum(record.attempt > 1 for record in records)
    if redone:
        notes.append(
            f"{redone} episode{'s were' if redone > 1 else ' was'} started again after a simulator process died."
        )
    trials = [row.total.trials for table in found.tables for row in table.rows]
    if trials and max(trials) < 100:
        notes.append(
            f"At most {max(trials)} episodes a condition: differences inside the intervals are no evidence either way."
        )
    if found.flows:
        notes.append(
            "Foresight errors are of full sampling; the policy itself reads the prior's hidden state after one step of ten."
        )
    return notes


def _scene_notes(records: Sequence[EpisodeRecord]) -> list[str]:
    if not records:
        return []
    suites, states = _only(record.suite for record in records), spans(sorted({record.state for record in records}))
    notes = [f"{suites}: stored initial states {states}; success counts if the goal held at any step."]
    shift = max(record.placement_shift for record in records)
    if shift:
        notes.append(
            f"Free-standing objects were displaced by up to {100 * shift:g} cm along x and y, "
            "which the standard protocol does not do: these rates cannot be compared with published ones."
        )
    if any(record.render != "exact" for record in records):
        notes.append(
            "Images were rendered without multisampling and reflections (`fast`), unlike the standard protocol's."
        )
    if any(record.condition == "replay" for record in records):
        notes.append("Replay repeats one expert episode of each task blindly: what it solves needs no perception.")
    return notes
