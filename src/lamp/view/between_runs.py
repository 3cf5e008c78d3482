"""The report's comparison of several evaluations, in pairs, on the scenes that both have met."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from lamp.benchmark.controls import CONTROLS
from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.statistics import Paired
from lamp.benchmark.tables import paired, sentence
from lamp.view import pages
from lamp.view.evidence import Evidence
from lamp.view.pages import Section
from lamp.view.wording import label, words


def pairs(found: Evidence) -> list[Paired]:
    """Compares each condition of a folder with the same condition of every other, or its only policy with another's only one."""
    compared = []
    runs = list(zip(found.folders, map(_policies, found.records), strict=True))
    for (folder, own), (other_folder, others) in combinations(runs, 2):
        matches = [(name, name) for name in own if name in others]
        if not matches and len(own) == len(others) == 1:
            matches = [(*own, *others)]
        for name, other_name in matches:
            shared = _in_equal_scenes(own[name], others[other_name])
            if shared:
                named = {"first": f"{label(folder)}: {name}", "second": f"{label(other_folder)}: {other_name}"}
                compared.append(replace(paired(own[name], shared), **named))
    return compared


def _in_equal_scenes(first: list[EpisodeRecord], second: list[EpisodeRecord]) -> list[EpisodeRecord]:
    """The second's episodes whose objects lie where the first's do: the same seed places them elsewhere for another shift."""
    places = {record.scene: (record.placement, record.render) for record in first}
    return [record for record in second if places.get(record.scene) == (record.placement, record.render)]


def _policies(records: tuple[EpisodeRecord, ...]) -> dict[str, list[EpisodeRecord]]:
    found: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        if record.condition not in CONTROLS:
            found.setdefault(record.condition, []).append(record)
    return found


def between(found: Evidence) -> Section | None:
    """The comparisons as sentences; None where no two evaluations share a scene."""
    told = [words(sentence(pair)) + "." for pair in pairs(found)]
    if not told:
        return None
    about = "Evaluations compared in pairs, on the initial states and placements that both have met."
    return Section(anchor="between", title="Between runs", about=about, body=pages.notes(told))
