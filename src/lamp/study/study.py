"""What a study is, as data: which episodes each stage learns from, the arms that are compared, how often, and on what.

An arm is a way of using the motion prior. All arms of a seed have the same action demonstrations in the same order, as many
steps and the same scenes, so that they are compared in pairs. `catalogue` has those that are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from lamp.benchmark.suites import SUITES, TASKS_PER_SUITE, parse_states
from lamp.collect.jobs import EXPERT_TASKS, CollectConfig
from lamp.configuration import to_json
from lamp.data.episode_selection import EpisodeSelection, number_ranges, parse_numbers
from lamp.errors import ConfigError, MismatchError, unknown
from lamp.files import is_file_name
from lamp.recipes import Recipe, TrainingRecipe, training
from lamp.study.synthetic_data import MadeUpData, synthetic_recipe
from lamp.train.checkpoint_metadata import read_description
from lamp.train.config import MotionTraining, PolicyTraining
from lamp.train.publishing import find_checkpoint
from lamp.train.run_folder import first_difference

CLAIM_POLICY_SEEDS, CLAIM_MOTION_SEEDS = 4, 2
"""With fewer seeds of Stage 2, or of Stage 1, nothing is claimed."""


@dataclass(frozen=True, kw_only=True)
class RecordedData:
    """A dataset that is there already, such as a robot's own, with its scene flow (`lamp flow build`)."""

    path: str
    embodiment: str | None = None
    """How it records its robot, as for `lamp train --embodiment`; by default as LaMP's own datasets do."""


Data = CollectConfig | RecordedData | MadeUpData


@dataclass(frozen=True, kw_only=True)
class MotionPrior:
    """How an arm's Stage 1 is trained, and what of it Stage 2 sees."""

    motion: Literal["same", "action_free", "both"] = "action_free"
    """Stage 1 learns from: the very demonstrations that Stage 2 has; the study's `motion` episodes and none of them, which is
    checked; or both."""
    extra: bool = True
    """Stage 1 also learns from the study's `extra` datasets; never where `motion` is `same`."""
    targets: Literal["true", "shuffled"] = "true"
    """`shuffled`: each picture is trained with another episode's motion, a control that only knows how motion is distributed."""
    oracle: bool = False
    """Stage 2 sees z_m of the true motion to come, in training and in the simulator: a ceiling and no result."""
    checkpoint: str | None = None
    """A motion checkpoint that is there already, such as `pretrained/libero_object`, in place of a Stage 1 of the study's own:
    what is compared is then this one, and not its kind."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of using the motion prior."""

    name: str
    prior: MotionPrior | None
    """None: no Stage 1."""
    recipe: str | None = None
    """Where Motion Expert, hand-over and policy come from, a name of `lamp recipe list`; None: the study's."""

    @property
    def trains_motion(self) -> bool:
        """Whether the study trains a Stage 1 for it, once for each motion seed."""
        return self.prior is not None and self.prior.checkpoint is None


@dataclass(frozen=True, kw_only=True)
class SimulatorTest:
    """Episodes in the simulator that every policy of the study is tried on."""

    name: str
    suite: str
    tasks: tuple[int, ...]
    states: str = "30:50"
    """Stored initial states; 30 to 49 are those of no demonstration."""
    repeats: int = 1
    """Episodes of each initial state, with other placements."""
    shift: float = 0.0
    """Objects are displaced by up to this much along x and along y [m]."""
    perturb: str | None = None
    """A plus-style perturbation, such as `camera=2`."""

    @property
    def episodes(self) -> int:
        """How many a policy is tried on."""
        return len(self.tasks) * len(parse_states(self.states)) * self.repeats


@dataclass(frozen=True, kw_only=True)
class Study:
    """Trains every arm on every number of demonstrations with every seed, and measures all of them alike."""

    name: str
    question: str
    recipe: str = "small_gated"
    """A name of `lamp recipe list`, or a recipe's file."""
    data: Data
    extra: tuple[Data, ...] = ()
    """Datasets that only Stage 1 learns from; they need no actions."""
    held_out: EpisodeSelection
    """Episodes of `data` that are measured and never trained on."""
    actions: EpisodeSelection
    """Episodes of `data` that action demonstrations are chosen from; tasks that are not among them are seen in motion alone."""
    motion: EpisodeSelection
    """Episodes of `data` that Stage 1 learns from without their actions."""
    demonstrations: tuple[int, ...]
    """Action demonstrations of each task; each number is a study of its own on the same prior."""
    arms: tuple[Arm, ...]
    against: str = "none"
    """The arm that the others are compared with."""
    motion_steps: int
    policy_steps: int
    motion_seeds: int = CLAIM_MOTION_SEEDS
    """Stage 1 is trained so often; each draws the demonstrations anew."""
    policy_seeds: int = CLAIM_POLICY_SEEDS
    """Stage 2 is trained so often, on the Stage 1 of each motion seed in turn."""
    prior_from: float | None = None
    """Share of the steps of Stage 2 after which the motion prior joins; None: as the recipes say, as in the next."""
    prior_dropout: float | None = None
    """Share of the training samples from which the motion prior is withheld."""
    measurements: int = 5
    """Of the held-out error, evenly over Stage 2; the best of them is reported beside the last."""
    held_out_samples: int = 192
    """Held-out frames of each."""
    tests: tuple[SimulatorTest, ...] = ()
    """None: held-out errors alone, for which no simulator is needed."""
    notes: tuple[str, ...] = ()
    """What a reader of its report should know."""
    check: bool = False
    """It tries the machinery and answers no question, so `lamp study list` leaves it out."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        tests = [test.name for test in self.tests]
        for what, given in (("arm", names), ("test", tests), ("study", [self.name])):
            for name in given:
                if not is_file_name(name) or "/" in name:
                    raise ConfigError(f"{what} {name!r}: expected a name that can be a folder's, such as action_free")
            if len(set(given)) < len(given):
                raise ConfigError(f"{what}s {', '.join(given)}: expected none twice")
        if self.against not in names:
            raise unknown("arm to compare with", self.against, names)
        if (
            not self.demonstrations
            or min(self.demonstrations) < 1
            or len({*self.demonstrations}) < len(self.demonstrations)
        ):
            raise ConfigError(
                f"demonstrations {list(self.demonstrations)}: expected numbers of demonstrations a task from 1 on, none twice"
            )
        for name in (
            "motion_steps",
            "policy_steps",
            "motion_seeds",
            "policy_seeds",
            "measurements",
            "held_out_samples",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.motion_seeds > self.policy_seeds:
            raise ConfigError(
                f"motion_seeds {self.motion_seeds}, policy_seeds {self.policy_seeds}: expected as many of Stage 2 or more, since "
                "each takes the Stage 1 of one motion seed"
            )
        if self.actions.per_task is not None or self.actions.share is not None:
            raise ConfigError("actions: `demonstrations` says how many of each task; expected no per_task or share")
        for name in ("prior_from", "prior_dropout"):
            if not 0.0 <= (getattr(self, name) or 0.0) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in [0, 1), such as 0.5")
        for test in self.tests:
            _check_test(test)

    def arm(self, name: str) -> Arm:
        """
        Raises:
            ConfigError: There is none of that name.
        """
        match = next((arm for arm in self.arms if arm.name == name), None)
        if match is None:
            raise unknown(f"arm of {self.name}", name, [arm.name for arm in self.arms])
        return match

    @property
    def collected(self) -> CollectConfig | None:
        """How the demonstrations are collected; None where they are there or made up."""
        return self.data if isinstance(self.data, CollectConfig) else None

    @property
    def is_made_up(self) -> bool:
        """Whether the demonstrations are made up."""
        return isinstance(self.data, MadeUpData)

    def motion_seed(self, seed: int) -> int:
        """The seed of the Stage 1, and of the choice of demonstrations, that belongs to a seed of Stage 2."""
        return seed % self.motion_seeds


def _check_test(test: SimulatorTest) -> None:
    if test.suite not in SUITES:
        raise unknown(f"suite of test {test.name!r}", test.suite, SUITES)
    for task in test.tasks:
        if not 0 <= task < TASKS_PER_SUITE:
            raise unknown(f"task of {test.suite} in test {test.name!r}", task, range(TASKS_PER_SUITE))
    if not test.tasks or test.repeats < 1 or test.shift < 0:
        raise ConfigError(
            f"test {test.name!r}: tasks {list(test.tasks)}, repeats {test.repeats}, shift {test.shift:g}; expected at least one "
            "task and episode, and no negative shift"
        )
    parse_states(test.states)
    if test.perturb is not None:
        from lamp_client.envs.plus_style import parse

        parse(test.perturb)


AnyTraining = Recipe | TrainingRecipe
BUDGET = ("batch_size", "time_budget_s", "time_limit_s", "accumulate")
"""Of a training's loop; its steps are the study's."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A study with the recipes that its arms name, as they were when it was begun: it goes on with these."""

    study: Study
    recipes: dict[str, AnyTraining] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study) -> Resolved:
        """Looks up the recipes, and checks all that can be checked before there are data.

        Raises:
            ConfigError: There is no such recipe, it lacks what an arm needs, or an oracle has no expert.
            MismatchError: The arms have unequal budgets, or backbones.
        """
        names = dict.fromkeys([study.recipe, *(arm.recipe for arm in study.arms if arm.recipe is not None)])
        resolved = cls(study=study, recipes={name: _own(study, name) for name in names})
        resolved.check()
        return resolved

    def check(self) -> None:
        """As `of`."""
        self._check_priors()
        self._check_extra()
        self._check_budgets()
        for arm in self.study.arms:
            if arm.prior is not None and arm.prior.oracle:
                self._check_oracle(arm)

    def recipe(self, arm: Arm) -> AnyTraining:
        """The recipe of an arm."""
        return self.recipes[arm.recipe or self.study.recipe]

    def motion(self, arm: Arm) -> MotionTraining | None:
        """The Stage 1 that is trained for an arm, but for its seed and episodes; None where there is none to train."""
        motion = self.recipe(arm).motion
        if arm.prior is None or not arm.trains_motion or motion is None:
            return None
        steps = self.study.motion_steps
        # Each measured sample takes all solver steps, at the end four times over: as long as many steps of training.
        return replace(
            motion,
            loop=replace(motion.loop, steps=steps, validate_every=steps),
            targets=arm.prior.targets,
            validation_samples=min(motion.validation_samples, 16),
            final_samples=min(motion.final_samples, 32),
            **_flow_frames(self.base),
        )

    def policy(self, arm: Arm) -> PolicyTraining:
        """The Stage 2 of an arm, but for its seed and episodes."""
        recipe = self.recipe(arm)
        policy = recipe.without_motion if arm.prior is None else recipe.policy
        if arm.prior is not None:
            seen = {"prior_from": self.study.prior_from, "prior_dropout": self.study.prior_dropout}
            policy = replace(policy, **{name: value for name, value in seen.items() if value is not None})
            policy = replace(policy, prior="oracle") if arm.prior.oracle else policy
        every = max(1, -(-self.study.policy_steps // self.study.measurements))
        loop = replace(policy.loop, steps=self.study.policy_steps, validate_every=every)
        if policy.model.flow_head and self.base.flow is not None:
            policy = replace(policy, flow=replace(policy.flow, frames=self.base.flow_frames))
        samples = self.study.held_out_samples
        return replace(policy, loop=loop, action_samples=samples, validation_samples=min(32, samples))

    @property
    def base(self) -> AnyTraining:
        """The study's own recipe, which says how scene flow is built."""
        return self.recipes[self.study.recipe]

    def _check_priors(self) -> None:
        collected = self.study.collected
        if collected is not None and self.base.flow is None:
            raise ConfigError(
                f"recipe {self.study.recipe!r} does not say how scene flow is built; expected a whole experiment, such as "
                "libero_object_small, where demonstrations are collected"
            )
        if collected is not None and collected.motion_only:
            raise ConfigError(
                "data is motion_only, and policies are trained on it; expected motion_only in `extra` alone"
            )
        for arm in self.study.arms:
            recipe = self.recipe(arm)
            if arm.prior is not None and (recipe.motion is None or recipe.policy.model.motion is None):
                raise ConfigError(
                    f"arm {arm.name!r} has a prior, and its recipe {recipe.name!r} has no Motion Expert; expected another "
                    "recipe, or prior null"
                )
            if arm.prior is not None and arm.prior.checkpoint is not None:
                self._check_checkpoint(arm, arm.prior.checkpoint)
            if recipe.backbone != self.base.backbone:
                raise MismatchError(
                    f"arm {arm.name!r}: recipe {recipe.name!r} has another backbone than {self.base.name!r}; expected the same, "
                    "which all arms' features are of"
                )

    def _check_checkpoint(self, arm: Arm, name: str) -> None:
        """It has the arm's Motion Expert, and the arm does not say as well how one is trained."""
        if arm.prior != MotionPrior(oracle=bool(arm.prior and arm.prior.oracle), checkpoint=name):
            raise ConfigError(
                f"arm {arm.name!r} takes the checkpoint {name}, and says how a Stage 1 is trained; expected one of the two"
            )
        wanted = self.policy(arm).model.motion
        motion = read_description(find_checkpoint(name)).model.motion
        if motion is not None and wanted is not None:
            motion = replace(motion, hidden_layer=wanted.hidden_layer)  # Stage 2's choice
        difference = first_difference(to_json(motion), to_json(wanted), "model.motion")
        if difference is not None:
            where, has, needs = difference
            raise MismatchError(
                f"arm {arm.name!r}: {name} has {where} = {has!r}, and recipe {self.recipe(arm).name!r} {needs!r}; expected the "
                "same"
            )

    def _check_extra(self) -> None:
        """What only Stage 1 learns from holds neither Stage 2's demonstrations nor what is held out."""
        held_out = self.study.held_out.states
        for number, extra in enumerate(self.study.extra):
            paths = [Path(one.path).resolve() for one in (extra, self.study.data) if isinstance(one, RecordedData)]
            if len(paths) == 2 and paths[0] == paths[1]:
                raise MismatchError(
                    f"extra[{number}] is {to_json(extra)['path']}, which `data` is too: Stage 1 would see Stage 2's "
                    "demonstrations and what is held out; expected another dataset, or `motion` for episodes of this one"
                )
            data = self.study.collected
            if data is None or not isinstance(extra, CollectConfig):
                continue
            if extra.suite != data.suite or not set(extra.tasks).intersection(data.tasks):
                continue
            states = set(range(*extra.states))
            gone = (
                sorted(states.intersection(parse_numbers(held_out, None, "states", strict=False))) if held_out else []
            )
            if gone:
                raise MismatchError(
                    f"extra[{number}] starts from initial states {number_ranges(gone)}, which are held out ({held_out}); "
                    f"expected others, within {number_ranges(sorted(states.difference(gone))) or 'those that are not'}"
                )
            if extra.seed == data.seed and not extra.perturb and extra.placement_shift == data.placement_shift:
                raise MismatchError(
                    f"extra[{number}] has the seed of `data`, {data.seed}, and would repeat its episodes; expected another"
                )

    def _check_budgets(self) -> None:
        """All arms take as many samples, and draws of noise of each, in a step; steps are the study's."""
        seen: dict[str, tuple[str, Any]] = {}
        for arm in self.study.arms:
            policy, motion = self.policy(arm), self.motion(arm)
            budget = {f"Stage 2's {name}": getattr(policy.loop, name) for name in BUDGET}
            budget |= {"Stage 2's noise_draws": policy.noise_draws}
            if motion is not None:
                budget |= {f"Stage 1's {name}": getattr(motion.loop, name) for name in BUDGET}
                budget |= {"Stage 1's draws": motion.draws}
            for name, value in budget.items():
                other, before = seen.setdefault(name, (arm.name, value))
                if before != value:
                    raise MismatchError(
                        f"unequal budgets: {name} is {value} in arm {arm.name!r} and {before} in {other!r}; expected the same "
                        "in all arms, which are compared at equal steps"
                    )

    def _check_oracle(self, arm: Arm) -> None:
        for test in self.study.tests:
            able = EXPERT_TASKS.get(test.suite, ())
            unable = [task for task in test.tasks if task not in able]
            if unable:
                raise ConfigError(
                    f"arm {arm.name!r} is an oracle, and the scripted expert cannot do task {', '.join(map(str, unable))} of "
                    f"{test.suite} (test {test.name!r}); expected tasks that it can do: "
                    + ("; ".join(f"{suite} {', '.join(map(str, tasks))}" for suite, tasks in EXPERT_TASKS.items()))
                    + ", or no oracle"
                )


def _own(study: Study, name: str) -> AnyTraining:
    return synthetic_recipe() if study.is_made_up and name == "made_up" else training(name)


def _flow_frames(base: AnyTraining) -> dict[str, Any]:
    """A flow step of the same time whatever the store's steps are."""
    return {} if base.flow is None else {"flow_frames": base.flow_frames}


GROWS = ("demonstrations", "arms", "tests", "policy_seeds", "question", "notes")
"""What a study that was begun may get more of."""


def check_continues(before: Study, now: Study, out: Path) -> None:
    """
    Raises:
        MismatchError: Something has changed that finished cells depend on.
    """
    for one in fields(Study):
        old, new = getattr(before, one.name), getattr(now, one.name)
        if one.name not in GROWS and old != new:
            raise MismatchError(
                f"{out} holds the study {before.name!r} with {one.name} {_short(old)}; now it is {_short(new)}: expected the "
                "same, or another --out"
            )
    for kind in ("arms", "tests"):
        mine = {one.name: one for one in getattr(now, kind)}
        for old in getattr(before, kind):
            if old.name in mine and mine[old.name] != old:
                raise MismatchError(
                    f"{out} was begun with {kind[:-1]} {old.name!r} as {_short(old)}; now it is {_short(mine[old.name])}: "
                    "expected the same, another name for it, or another --out"
                )


def _short(value: Any) -> str:
    text = str(to_json(value))
    return text if len(text) <= 160 else f"{text[:160]} ..."
