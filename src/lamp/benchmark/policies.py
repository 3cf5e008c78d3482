"""The checkpoints of an evaluation: opened when first needed, answering the observations of many simulators at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lamp.benchmark.baselines import (
    ORACLE,
    Checkpoint,
    Condition,
    Intervened,
    Oracle,
    PolicyCondition,
    PriorBank,
    Shortcut,
    control,
    is_oracle,
    oracle_name,
)
from lamp.benchmark.flow_errors import FlowProbe
from lamp.benchmark.run_manifest import checkpoint_hash, model_kind, trained_with
from lamp.benchmark.sim_worker import ActionRequest
from lamp.errors import ConfigError, MismatchError
from lamp.model.prior_interventions import Intervention, PriorKind
from lamp_client.types import ActionChunk

if TYPE_CHECKING:
    from lamp.train.checkpoint_metadata import FlowRecord

SIMULATION_FPS = 20
"""Steps a second of LIBERO's simulators, the only ones in which an oracle can be told."""


@runtime_checkable
class BatchPolicy(Protocol):
    """What an evaluation needs of `lamp.policy.LaMPPolicy`."""

    @property
    def uses_motion(self) -> bool:
        """Whether the motion prior guides the actions."""
        ...

    @property
    def execute(self) -> int:
        """Actions of a chunk to execute before replanning."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the policy says about itself, as plain values."""
        ...

    @property
    def foresees(self) -> FlowRecord | None:
        """The scene flow that the policy predicts; None where it predicts none."""
        ...

    @property
    def act_batch(self) -> Callable[..., list[ActionChunk]]:
        """(observations, noise seeds, foresight=whether to predict points too) -> a chunk for each observation.

        With `prior_instructions`, the Motion Expert is told those; with `prior_observations`, it sees those. An oracle needs
        `true_motion`.
        """
        ...

    def oracle(self) -> BatchPolicy:
        """The same policy, told the true motion to come.

        Raises:
            MismatchError: It has no motion prior.
        """
        ...

    def intervened(self, intervention: Intervention) -> BatchPolicy:
        """The same policy with its motion prior changed while it acts.

        Raises:
            MismatchError: It has no motion prior, or not what the intervention changes.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PolicyRunSettings:
    """Settings of every evaluation, whatever the benchmark: which policies act, and how they are run."""

    checkpoint: Path | None = None
    """The policy's checkpoint folder; None evaluates controls only."""
    against: Path | None = None
    """A second checkpoint on the same episodes, such as the one trained without the motion prior."""
    videos: int = 0
    """Policy episodes to film, spread over the tasks."""
    fast: bool = True
    """Take the policy's fast path: the same actions within rounding (docs/speed.md). False: the plain arithmetic."""
    gather_ms: float = 2.0
    """How long the policy waits for further observations to batch, beyond those that came while it was busy [ms]."""
    deadline_s: float = 1800.0
    """An episode that takes longer is stopped with its simulator, counted, and tried again [s]."""
    shard: str = ""
    """Part of the evaluation to do, such as `0/4` on the first of four machines; `lamp merge-evaluations` joins the folders."""
    label: str | None = None
    """Name of `checkpoint` in tables; None says with_motion or without_motion."""
    against_label: str | None = None
    """Name of `against` in tables."""
    device: str = "cpu"
    """Where the policy computes."""
    threads: int = 1
    """CPU threads of the policy; the simulators need the other cores."""


class Policies:
    """The checkpoints that an evaluation asks.

    Args:
        load: Opens the policy of a checkpoint folder.
    """

    def __init__(self, load: Callable[[Path], BatchPolicy]) -> None:
        self._load = load
        self._opened: dict[Path, BatchPolicy] = {}
        self._asking: dict[str, PolicyCondition] = {}
        self._intervened: dict[str, BatchPolicy] = {}
        self.banks: Mapping[str, PriorBank] = {}
        """Suite -> the observations that shuffled priors are of."""

    def conditions(
        self,
        checkpoints: Iterable[tuple[Path | None, str | None]],
        controls: Iterable[str],
        data: Path | None,
        tasks: tuple[int, ...] = (),
        interventions: Sequence[Intervention] = (),
        priors: Sequence[PriorKind] = (),
        shortcut: Path | None = None,
    ) -> dict[str, Condition]:
        """Builds the conditions by name, policies first.

        Args:
            checkpoints: Folders and names; where a name is None, the checkpoint's own is taken: with or without motion.
            controls: Names of controls; those that ask a policy ask the first checkpoint.
            data: The dataset that the replay control repeats.
            interventions: Changes of the first checkpoint's motion prior, a condition each.
            priors: What z_m of each checkpoint is of; predicted where it is not given.
            shortcut: Folder of a shortcut policy.

        Raises:
            ConfigError: Two conditions have the same name, or a control or an intervention lacks what it needs.
            DataError: `shortcut` is no shortcut policy's folder.
            MismatchError: The first checkpoint's policy has no motion prior, or not what an intervention changes; or a policy
                that was trained as an oracle is to act without the true motion.
        """
        named: list[tuple[Path, str | None, PriorKind]] = [
            (path, name, priors[place] if place < len(priors) else "predicted")
            for place, (path, name) in enumerate(checkpoints)
            if path is not None
        ]
        first = named[0][0] if named else None
        built: list[Condition] = [self._condition(path, name, prior=prior) for path, name, prior in named]
        if interventions and first is None:
            raise ConfigError("interventions need --checkpoint: they change its motion prior")
        built += [Intervened(path=first, intervention=one, among=tasks) for one in interventions if first is not None]
        if shortcut is not None:
            from lamp.benchmark.shortcut import check_shortcut

            check_shortcut(shortcut)
            built.append(Shortcut(path=shortcut))
        built += [control(name, checkpoint=first, data=data, tasks=tasks) for name in controls]
        names = [condition.name for condition in built]
        if len(set(names)) != len(names):
            raise ConfigError(
                f"conditions {', '.join(names)}: expected different names; give --label and --against-label"
            )
        self._asking = {c.name: c for c in built if isinstance(c, PolicyCondition)}
        for name, condition in self._asking.items():
            if condition.changes_policy:
                self._of(name)  # a policy without what is to be changed is refused now
        return {condition.name: condition for condition in built}

    def _condition(self, path: Path, name: str | None, *, prior: PriorKind) -> Condition:
        trained = trained_with(path)
        if prior == "predicted":
            if trained == "oracle":
                raise MismatchError(
                    f"{path} was trained with --prior oracle, on the TRUE motion to come; expected --prior oracle here, too "
                    "(it is then called an oracle in every table), or another checkpoint"
                )
            if name is not None and is_oracle(name):
                raise ConfigError(
                    f"label {name!r} says that the policy is told the true motion; expected another, or --prior oracle"
                )
            kind = "with_motion" if self._policy(path).uses_motion else "without_motion"
            return Checkpoint(name=name or kind, path=path)
        if not self._policy(path).uses_motion:
            return Checkpoint(name=name or "without_motion", path=path)
        own = ORACLE if trained == "oracle" else oracle_name("with_motion")
        return Oracle(name=own if name is None else oracle_name(name), path=path)

    def oracles(self) -> dict[str, FlowProbe]:
        """Returns the scene flow that each oracle has to be told.

        Raises:
            MismatchError: It is of another rate than the simulators'.
        """
        found = {}
        for name, asking in self._asking.items():
            flow = self._policy(asking.path).foresees
            if asking.is_oracle and flow is not None:
                steps = flow.stride * SIMULATION_FPS / flow.fps
                if abs(steps - round(steps)) > 0.01 * steps or round(steps) < 1:
                    raise MismatchError(
                        f"{asking.path}: a flow step takes {flow.stride / flow.fps:.3g} s, {steps:.3g} steps of the simulator; "
                        "expected a whole number of them"
                    )
                found[name] = replace(_probe(flow), stride=round(steps))
        return found

    def hashes(self, conditions: Iterable[str]) -> dict[str, str]:
        """Returns the content hash of the checkpoint that each condition asks; empty where it asks none."""
        by_path = {path: checkpoint_hash(path) for path in {condition.path for condition in self._asking.values()}}
        return {name: by_path[self._asking[name].path] if name in self._asking else "" for name in conditions}

    def kinds(self) -> dict[str, dict[str, str | None]]:
        """Returns what kind of policy each condition is that acts as its checkpoint is meant to."""
        return {
            name: model_kind(one.path)
            | ({"prior": "oracle", "trained_with": trained_with(one.path)} if one.is_oracle else {})
            for name, one in self._asking.items()
            if one.is_intended
        }

    def execute(self, override: int | None) -> dict[str, int]:
        """Returns how many actions of a chunk each asking condition executes: the checkpoint's number, unless overridden."""
        return {name: override or self._policy(asking.path).execute for name, asking in self._asking.items()}

    def metadata(self) -> dict[str, Mapping[str, Any]]:
        """Returns what the policy of each asking condition says about itself."""
        return {name: self._policy(one.path).metadata for name, one in self._asking.items()}

    def probes(self) -> dict[str, FlowProbe]:
        """Returns the scene flow that each condition foresees, of those that act as the checkpoint is meant to."""
        probes = {}
        for name, asking in self._asking.items():
            policy = self._policy(asking.path)
            flow = policy.foresees
            if asking.is_intended and not asking.is_oracle and flow is not None:
                probes[name] = replace(_probe(flow), hidden_points=False)
        return probes

    def answer(self, requests: Sequence[ActionRequest]) -> list[ActionChunk]:
        """Answers requests of several workers, one forward pass for all that ask the same checkpoint."""
        groups: dict[tuple[Path, str, bool], list[int]] = {}
        for index, request in enumerate(requests):
            condition = self._asking[request.episode.condition]
            changed = request.episode.condition if condition.changes_policy else ""
            groups.setdefault((condition.path, changed, request.foresight), []).append(index)
        chunks: dict[int, ActionChunk] = {}
        for (_, _, foresight), indices in groups.items():
            group = [requests[index] for index in indices]
            prior_instructions = [request.prior_instruction for request in group]
            overrides: dict[str, Any] = (
                {} if prior_instructions[0] is None else {"prior_instructions": prior_instructions}
            )
            condition = self._asking[group[0].episode.condition]
            if condition.is_oracle:
                overrides["true_motion"] = [request.true_motion for request in group]
            if condition.shuffles:
                overrides["prior_observations"] = [
                    self.banks[request.episode.suite].other(request.episode.task, request.noise_seed)
                    for request in group
                ]
            group_chunks = self._of(group[0].episode.condition).act_batch(
                [request.observation for request in group],
                [request.noise_seed for request in group],
                foresight=foresight,
                **overrides,
            )
            chunks.update(zip(indices, group_chunks, strict=True))
        return [chunks[index] for index in range(len(requests))]

    def _of(self, name: str) -> BatchPolicy:
        condition = self._asking[name]
        policy = self._policy(condition.path)
        if not condition.changes_policy:
            return policy
        if name not in self._intervened:
            self._intervened[name] = condition.changed(policy)
        return self._intervened[name]

    def _policy(self, path: Path) -> BatchPolicy:
        if path not in self._opened:
            self._opened[path] = self._load(path)
        return self._opened[path]


def _probe(flow: FlowRecord) -> FlowProbe:
    flow.check_timed("measuring its foresight")
    return FlowProbe(
        camera=flow.camera,
        grid=flow.grid,
        horizon=flow.horizon,
        stride=flow.stride,
        hidden_points=flow.supervision.hidden_points,
    )


class PolicyOpener:
    """Opens LaMP's policies of checkpoint folders; those that were trained on the same backbone share it.

    Args:
        execute: Actions of a chunk that will be executed; None: as many as the checkpoint says.
        fast: Prepare the fast path.
    """

    def __init__(self, execute: int | None = None, *, fast: bool = True) -> None:
        from lamp.train.checkpoint import BackboneCache

        self._backbones = BackboneCache()
        self._execute, self._fast = execute, fast

    def __call__(self, path: Path, device: str, threads: int) -> BatchPolicy:
        """Opens a policy.

        Args:
            path: The checkpoint, or the run that holds it.
            device: Where to compute.
            threads: CPU threads of this process; the simulators need the other cores.

        Raises:
            ConfigError: There is no such device.
            MismatchError: Its chunks are too short, or it is no policy; no weights have been read then.
        """
        import torch

        from lamp.benchmark.shortcut import ShortcutPolicy, is_shortcut
        from lamp.policy import LaMPPolicy
        from lamp.train.checkpoint_metadata import read_description
        from lamp.train.run_folder import check_device

        check_device(device, "--device")
        torch.set_num_threads(threads)
        if is_shortcut(path):
            return ShortcutPolicy(path)
        record = read_description(path).policy
        if self._execute is not None and record is not None and self._execute > record.chunk:
            raise MismatchError(
                f"{path} has chunks of {record.chunk} actions, and {self._execute} are to be executed of each; expected 1 to "
                f"{record.chunk}."
            )
        policy = LaMPPolicy.from_checkpoint(path, device=device, backbone=self._backbones)
        return policy.compile() if self._fast else policy
