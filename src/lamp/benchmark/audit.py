"""The four audits of arXiv 2606.04233, "What Are We Actually Benchmarking in Robot Manipulation?", for one policy on a suite.

A success rate is evidence of a capability only if nothing without the capability reaches it. So, on the same scenes: does a small
policy without words do as well (`shortcut`), or the policy itself without vision; is the rate beyond chance, and beyond the best
published one, by more than so few episodes would show by luck; and does it hold where the scenes are drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lamp.benchmark.baselines import SHORTCUT
from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.evaluate import EvaluateConfig, evaluate
from lamp.benchmark.policies import BatchPolicy
from lamp.benchmark.run_manifest import read_manifest
from lamp.benchmark.sim_worker import Artist, plain
from lamp.benchmark.statistics import Paired, Rate, episodes_needed, fisher_exact, pairs_needed
from lamp.benchmark.suites import TASKS_PER_SUITE, Simulators
from lamp.benchmark.summary import Summary
from lamp.benchmark.tables import counted, paired, percent, rate_of
from lamp.errors import ConfigError, MismatchError
from lamp.files import atomic_write_text
from lamp.json_files import write_json
from lamp.progress import say

LEVEL = 0.05
"""Of a p-value that counts as significant."""
DROP = 0.10
"""A fall of the success rate that an audit of shifted scenes should be able to see."""
CONTROLS = ("blank", "zero")
"""What an audit needs beside the policy and the shortcut policy."""
Verdict = Literal["passed", "failed", "open"]


@dataclass(frozen=True, kw_only=True)
class PublishedRate:
    """The best published row of a suite."""

    method: str
    rate: float
    """Share of successes."""
    source: str
    episodes: int = 500
    """Tables give percentages; LIBERO's protocol has so many episodes a suite."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One of the four."""

    name: str
    question: str
    verdict: Verdict
    """`passed`: the evidence is there; `failed`: it is against the claim; `open`: these episodes do not decide it."""
    sentences: tuple[str, ...]
    numbers: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What the audits found, beside the evaluation that they are of."""

    policy: str
    suite: str
    audits: tuple[Audit, ...]
    notes: tuple[str, ...]
    summary: Summary

    @property
    def text(self) -> str:
        """The tables, and the audits for a terminal."""
        lines = [f"Audit of {self.policy} on {self.suite} (arXiv 2606.04233)"]
        for number, one in enumerate(self.audits, start=1):
            lines += ["", f"{number}. {one.question} {one.verdict.upper()}", *(f"   {line}" for line in one.sentences)]
        return "\n".join([self.summary.text, *lines, *(f"\n{note}" for note in self.notes)])

    def write(self) -> None:
        """Writes audit.json and audit.md beside the episodes."""
        folder = self.summary.folder
        facts = {"format": "lamp-audit", "version": 1, "policy": self.policy, "suite": self.suite, "notes": self.notes}
        write_json(folder / "audit.json", {**facts, "audits": [asdict(one) for one in self.audits]})
        lines = [f"# Audit of {self.policy} on {self.suite}", ""]
        for number, one in enumerate(self.audits, start=1):
            lines += [f"## {number}. {one.question}", "", f"**{one.verdict}**", ""]
            lines += [*(f"- {line}" for line in one.sentences), ""]
        atomic_write_text(folder / "audit.md", "\n".join([*lines, *(f"{note}\n" for note in self.notes)]))


def run_audit(
    config: EvaluateConfig,
    *,
    published: PublishedRate | None = None,
    artist: Artist = plain,
    load: Callable[[Path, str, int], BatchPolicy] | None = None,
    simulators: Simulators | None = None,
) -> AuditReport:
    """Trains the shortcut policy where there is none, runs or continues the evaluation, and audits it.

    Args:
        config: With `audit`, a checkpoint, and `data` or `shortcut`.
        published: The best published row of the suite; None: there is none.
        artist: Draws the policy's foresight over film frames.
        load: Opens the policy of (a checkpoint folder, a device, a number of threads); None takes LaMP's.
        simulators: Where the tasks come from; None takes LIBERO's.

    Raises:
        ConfigError: What an audit needs is not given, or a setting does not fit.
        DataError: The demonstrations cannot be read.
    """
    config = replace(
        config,
        shortcut=_shortcut(config),
        controls=tuple(dict.fromkeys((*config.controls, *CONTROLS))),
    )
    summary = evaluate(config, artist=artist, load=load, simulators=simulators)
    policy = next(iter(read_manifest(config.out)["conditions"]))
    standard, *others = [one.simulators.suite for one in config.evaluation_plan(simulators).suites]
    report = audited(summary, policy=policy, standard=standard, shifted=others, published=published)
    report.write()
    return report


def _shortcut(config: EvaluateConfig) -> Path:
    """The folder of the shortcut policy, which is trained where there is none."""
    from lamp.benchmark.shortcut import ShortcutTraining, is_shortcut, train_shortcut
    from lamp.train.checkpoint_metadata import read_description

    folder = config.shortcut or config.out / SHORTCUT
    if config.shortcut is not None or is_shortcut(folder):
        return folder
    if config.data is None or config.checkpoint is None:
        raise ConfigError(
            "--audit needs --data: the demonstrations that the policy learnt from, on which the shortcut policy is trained; or "
            "--shortcut, the folder of one that is trained"
        )
    record = read_description(config.checkpoint).policy
    if record is None:
        raise MismatchError(f"{config.checkpoint} is no policy's checkpoint; expected one of `lamp train policy`")
    training = ShortcutTraining(steps=config.shortcut_steps, seed=config.seed)
    trained = train_shortcut(config.data, folder, record.embodiment, training)
    say(
        f"shortcut policy of {trained.parameters:,} weights trained on {trained.frames:,} frames of {len(trained.tasks)} tasks: "
        f"mean error {trained.loss:.2f} standard deviations of the actions"
    )
    return folder


def audited(
    summary: Summary, *, policy: str, standard: str, shifted: Sequence[str], published: PublishedRate | None
) -> AuditReport:
    """Audits the episodes of an evaluation.

    Args:
        policy: The condition that is audited.
        standard: Name of the suite as it is.
        shifted: Names of the suites with other scenes.
    """
    own = [record for record in summary.records if record.suite == standard]

    def of(condition: str, suite: str = standard) -> list[EpisodeRecord]:
        return [record for record in summary.records if record.condition == condition and record.suite == suite]

    audits = (
        _against(
            "shortcut",
            "Does a small policy that is told the task's number, and no words, do as well?",
            of(policy),
            of(SHORTCUT),
        ),
        _against("vision", "Does the policy do as well without vision (grey images)?", of(policy), of("blank")),
        _significance(of(policy), of("zero"), published, whole=_is_whole(own)),
        *(_shifted(of(policy), of(policy, suite), of(SHORTCUT), of(SHORTCUT, suite), suite) for suite in shifted),
    )
    notes = () if summary.complete else (f"{len(summary.records)} of {summary.planned} episodes are done.",)
    return AuditReport(policy=policy, suite=standard, audits=audits, notes=notes, summary=summary)


def _is_whole(records: Sequence[EpisodeRecord]) -> bool:
    """Whether the episodes are LIBERO's protocol: all tasks, 50 stored states each, once, rendered exactly."""
    scenes = {(record.task, record.state, record.repeat) for record in records}
    return len(scenes) == 50 * TASKS_PER_SUITE and all(
        record.render == "exact" and not record.placement_shift and not record.repeat for record in records
    )


def _against(name: str, question: str, policy: Sequence[EpisodeRecord], other: Sequence[EpisodeRecord]) -> Audit:
    """Whether the policy does better than what lacks the capability."""
    if not policy or not other:
        return _undone(name, question)
    pair = paired(policy, other)
    mine, theirs = rate_of(policy), rate_of(other)
    sentences = [
        f"{pair.first} {counted(mine)}, {pair.second} {counted(theirs)} on the same {pair.episodes} episodes: difference "
        f"{100 * pair.difference:+.1f} points, {pair.test} p = {pair.p_value:.3g}."
    ]
    verdict: Verdict = "failed" if pair.difference <= 0 else "passed" if pair.p_value < LEVEL else "open"
    if verdict == "passed":
        sentences.append(f"Only what is above {percent(theirs.value)} is evidence of what {pair.second} lacks.")
    elif verdict == "failed":
        sentences.append(f"{pair.second} does as well: the rate of {pair.first} shows nothing that it lacks.")
    else:
        sentences.append(_more_pairs(pair))
    return Audit(name=name, question=question, verdict=verdict, sentences=tuple(sentences), numbers=_pair_numbers(pair))


def _significance(
    policy: Sequence[EpisodeRecord], zero: Sequence[EpisodeRecord], published: PublishedRate | None, *, whole: bool
) -> Audit:
    """Whether the rate is beyond chance, and beyond the best published row."""
    name, question = "significance", "Is the rate beyond chance, and beyond the best published one?"
    if not policy or not zero:
        return _undone(name, question)
    mine, chance = rate_of(policy), paired(policy, zero)
    above = chance.difference > 0 and chance.p_value < LEVEL
    sentences = [
        f"Chance, a robot that stands still, {counted(rate_of(zero))}: difference {100 * chance.difference:+.1f} points, "
        f"{chance.test} p = {chance.p_value:.3g}.",
    ]
    if not above:
        sentences.append(_more_pairs(chance))
    numbers: dict[str, Any] = {"rate": asdict(mine), "chance": _pair_numbers(chance), "published": None}
    verdict: Verdict = "open" if above or chance.difference > 0 else "failed"
    if published is None:
        sentences.append("No published row of this suite is known.")
    else:
        theirs = Rate(successes=round(published.rate * published.episodes), trials=published.episodes)
        p_value, needed = fisher_exact(mine, theirs), episodes_needed(mine.value, published.rate)
        difference = mine.value - published.rate
        sentences.append(
            f"Best published: {published.method}, {percent(published.rate)} ({published.source}), taken as {theirs.successes} of "
            f"{theirs.trials} episodes: difference {100 * difference:+.1f} points, Fisher's exact test p = {p_value:.3g}."
        )
        sentences.append(
            "Equal rates: no number of episodes tells them apart."
            if needed is None
            else f"A difference of this size takes {needed:,} episodes of each to show (two-sided 5%, power 80%); here are "
            f"{mine.trials:,}."
        )
        if not whole:
            sentences.append(
                "These episodes are not LIBERO's protocol (500 a suite), so the comparison is of unequal things."
            )
        if above and whole and p_value < LEVEL:
            verdict = "passed" if difference > 0 else "failed"
        numbers["published"] = {
            "method": published.method,
            "rate": published.rate,
            "p_value": p_value,
            "episodes_needed": needed,
            "protocol": whole,
        }
    return Audit(name=name, question=question, verdict=verdict, sentences=tuple(sentences), numbers=numbers)


def _shifted(
    policy: Sequence[EpisodeRecord],
    moved: Sequence[EpisodeRecord],
    shortcut: Sequence[EpisodeRecord],
    shortcut_moved: Sequence[EpisodeRecord],
    suite: str,
) -> Audit:
    """Whether the rate holds on scenes that are drawn anew: the fixed initial states may have been learnt, or chosen by."""
    name, question = "shift", f"Does the rate hold on other scenes ({suite})?"
    if not policy or not moved:
        return _undone(name, question)
    pair = _same_states(policy, moved)
    needed = pairs_needed(DROP, max(DROP, _disagreement(pair)))
    sentences = [
        f"{policy[0].condition} {counted(rate_of(policy))} as stored, {counted(rate_of(moved))} shifted: fall of "
        f"{100 * pair.difference:.1f} points on the same {pair.episodes} initial states, {pair.test} p = {pair.p_value:.3g}."
    ]
    numbers: dict[str, Any] = {"suite": suite, **_pair_numbers(pair), "shortcut": None}
    if shortcut and shortcut_moved:
        fall = _same_states(shortcut, shortcut_moved)
        numbers["shortcut"] = _pair_numbers(fall)
        sentences.append(
            f"The shortcut policy: {counted(rate_of(shortcut))} as stored, {counted(rate_of(shortcut_moved))} shifted, fall of "
            f"{100 * fall.difference:.1f} points, p = {fall.p_value:.3g}."
        )
    verdict: Verdict = "passed"
    if pair.difference > 0 and pair.p_value < LEVEL:
        verdict = "failed"
        sentences.append("The rate depends on the stored scenes.")
    elif needed is not None and pair.episodes < needed:
        verdict = "open"
        sentences.append(
            f"A fall of {100 * DROP:.0f} points takes {needed:,} pairs to show at this disagreement (two-sided 5%, power 80%); "
            f"here are {pair.episodes:,}."
        )
    return Audit(name=name, question=question, verdict=verdict, sentences=tuple(sentences), numbers=numbers)


def _same_states(standard: Sequence[EpisodeRecord], moved: Sequence[EpisodeRecord]) -> Paired:
    """Pairs the episodes of one condition in two suites by task, initial state and repeat."""

    def named(records: Sequence[EpisodeRecord], condition: str) -> list[EpisodeRecord]:
        return [replace(one, condition=condition, suite="", placement_seed=one.repeat) for one in records]

    return paired(named(standard, "stored"), named(moved, "shifted"))


def _disagreement(pair: Paired) -> float:
    return (pair.only_first + pair.only_second) / pair.episodes


def _more_pairs(pair: Paired) -> str:
    needed = pairs_needed(pair.difference, _disagreement(pair))
    if needed is None:
        return "These episodes show no difference at all."
    return (
        f"A difference of this size takes {needed:,} paired episodes to show at this disagreement (two-sided 5%, power 80%); "
        f"here are {pair.episodes:,}."
    )


def _pair_numbers(pair: Paired) -> dict[str, Any]:
    counts = {name: getattr(pair, name) for name in ("both", "only_first", "only_second", "neither", "episodes")}
    needed = pairs_needed(pair.difference, _disagreement(pair))
    return {**counts, "difference": pair.difference, "p_value": pair.p_value, "test": pair.test, "pairs_needed": needed}


def _undone(name: str, question: str) -> Audit:
    return Audit(name=name, question=question, verdict="open", sentences=("No episode is done yet.",), numbers={})
