"""A run's folder: what is in it, continuing what is unfinished, and going from a prepared stage to its final checkpoint.

out/lamp.json          the resolved configuration
out/metrics.jsonl      one line per log interval and validation; out/tensorboard holds the same
out/checkpoint/        the latest checkpoint, whole at any moment
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

import lamp.version
from lamp.configuration import to_json
from lamp.errors import ConfigError, MismatchError, TerminatedError
from lamp.files import locked, remove_folder
from lamp.json_files import write_json
from lamp.model.qwen3_vl import PROVENANCE
from lamp.progress import say
from lamp.train.checkpoint import (
    ADAPTER_PREFIX,
    HASH_BELOW,
    check_files,
    load_adapter,
    load_state,
    load_weights,
    recover,
    save_checkpoint,
)
from lamp.train.checkpoint_metadata import FILE_NAME, Description, read_description
from lamp.train.config import LoopConfig
from lamp.train.distributed import SINGLE_PROCESS, DistributedContext
from lamp.train.metrics import FILE_NAME as METRICS
from lamp.train.metrics import IDS
from lamp.train.stages import Stage
from lamp.train.trainer import Outcome, Trainer
from lamp.train.training_state import TrainingState

CHECKPOINT = "checkpoint"
HIDDEN = "hidden"
FLOW = "flow.json"
NOTES = (
    "floored",
    "state_features",
    "scene_flow",
    "rotations",
    "train_episodes",
    "supervision",
    "action_names",
    "action_units",
)
LENGTH = ("steps", "time_budget_s")
"""Loop settings that a finished run may raise: it then goes on, with the schedule of a run of the new length from there on."""
MADE_BY_A_RUN = (CHECKPOINT, "tensorboard", "wandb", HIDDEN, METRICS, FILE_NAME, IDS, FLOW)
FREE_TO_CHANGE = (
    *("log_every", "checkpoint_every", "validate_every", "time_limit_s", "threads", "device"),
    *("accumulate", "recompute", "sharding", "workers", "trackers"),
)
"""Loop settings that a continued run may change: the weights do not depend on them, but for rounding."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training call leaves behind."""

    checkpoint: Path
    description: Description
    outcome: Outcome
    """Of this call; a run that was finished before took no time."""


@runtime_checkable
class RunStage(Protocol):
    """What is done with a stage once it is prepared: trained (`run_stage`), or only planned."""

    def __call__(
        self,
        stage: Stage[Any],
        loop: LoopConfig,
        description: Description,
        out: Path,
        *,
        fresh: bool,
        prepare: Callable[[], None] = ...,
        distributed: DistributedContext = ...,
    ) -> TrainingResult: ...


def run_stage(
    stage: Stage[Any],
    loop: LoopConfig,
    description: Description,
    out: Path,
    *,
    fresh: bool,
    prepare: Callable[[], None] = lambda: None,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> TrainingResult:
    """Trains a stage in `out`, from where an earlier call stopped.

    Args:
        description: What the checkpoint will say; the step is filled in.
        fresh: Remove an earlier run first.
        prepare: Called before the first step of this call, if there is one; by the main process first.
        distributed: The processes that train together.

    Raises:
        MismatchError: `out` holds a run with other settings or data.
        KeyboardInterrupt: The user, or the system, asked to stop; a checkpoint has been written.
    """
    path = out / CHECKPOINT
    with _exclusive_use(out, distributed):
        if fresh:
            distributed.on_main(lambda: clear(out))
        distributed.on_main(lambda: recover(path))
        state = _resume_state(stage, description, path, distributed)
        if state is not None and state.finished:
            _say(
                distributed,
                f"{stage.name}: {out} is already finished (step {state.step}); "
                "a larger --loop.steps goes on, --fresh starts again.",
            )
            outcome = Outcome(reason="finished", step=state.step, elapsed_s=state.elapsed_s, samples_per_s=0.0)
            return TrainingResult(checkpoint=path, description=read_description(path), outcome=outcome)
        if state is not None:
            _say(distributed, f"{stage.name}: continuing {out} from step {state.step}.")
            distributed.on_main(lambda: (out / FLOW).unlink(missing_ok=True))  # of a run that had been finished
        distributed.on_main(lambda: write_json(out / FILE_NAME, _run_record(description)))
        distributed.on_main(prepare)
        if not distributed.is_main:
            prepare()  # what the main process has computed is read

        def save(now: TrainingState) -> None:
            weights = {**stage.model.state_dict(), **now.weights}
            save_checkpoint(path, replace(description, step=now.step), weights, now, distributed)

        outcome = Trainer(stage, loop, out, save, state, distributed).run()
        distributed.barrier()
    if outcome.reason == "interrupted" or outcome.signal is not None:
        raise KeyboardInterrupt if outcome.signal in (None, signal.SIGINT) else TerminatedError(outcome.signal)
    return TrainingResult(checkpoint=path, description=read_description(path), outcome=outcome)


@contextmanager
def _exclusive_use(out: Path, distributed: DistributedContext) -> Iterator[None]:
    """Keeps other trainings out of a folder; the main process holds the lock for all of this one."""
    with ExitStack() as stack:
        lock = locked(out / ".lock", f"another process is training in {out}; wait for it, or choose another --out.")
        distributed.on_main(lambda: stack.enter_context(lock))
        yield


def _say(distributed: DistributedContext, text: str) -> None:
    if distributed.is_main:
        say(text)


def has_device(device: str) -> bool:
    """Whether this machine has a device.

    Raises:
        ConfigError: There is no such kind of device at all.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(f"device {device!r} given; expected cpu, cuda or one GPU, such as cuda:1.") from None
    return kind != "cuda" or torch.cuda.is_available()


def check_device(device: str, flag: str = "--loop.device") -> None:
    """
    Args:
        device: As torch names it.
        flag: With which it is chosen, for the error.

    Raises:
        ConfigError: This machine has no such device.
    """
    if not has_device(device):
        raise ConfigError(f"device {device!r} given, and this machine has no GPU; expected {flag} cpu.")


def clear(out: Path) -> None:
    """Removes what a run has made in its folder, and nothing else."""
    for name in MADE_BY_A_RUN:
        path = out / name
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)


def _resume_state(
    stage: Stage[Any], description: Description, path: Path, distributed: DistributedContext
) -> TrainingState | None:
    if not path.exists():
        return None
    distributed.on_main(lambda: check_files(path, hash_below=HASH_BELOW))
    previous = read_description(path)
    longer = _is_longer(previous, description)
    _check_same(path, previous, description, longer=longer)
    if not distributed.from_main(lambda: check_files(path)):
        _say(distributed, f"{path} was written without checksums, by an earlier version: it is continued as it is.")
    weights = load_weights(path, previous, stage.model)
    weights |= {ADAPTER_PREFIX + name: value for name, value in load_adapter(path, previous).items()}
    state = load_state(path, weights, list(stage.parameters()))
    if not longer:
        return state
    if not state.finished:
        raise MismatchError(
            f"{path} is unfinished, at step {state.step}, and more steps are asked for than its schedule was made for; finish it "
            "first with the length it had, then raise it (or --fresh to start again)."
        )
    return replace(state, finished=False)


def _is_longer(previous: Description, now: Description) -> bool:
    """Whether a run is to have more steps or time than it had, and not less of either."""
    before, after = previous.training.loop, now.training.loop
    if before is None or after is None:
        return False
    pairs: list[tuple[float, float]] = [(before.steps, after.steps)]
    if (before.time_budget_s is None) != (after.time_budget_s is None):
        return False
    if before.time_budget_s is not None and after.time_budget_s is not None:
        pairs.append((before.time_budget_s, after.time_budget_s))
    return all(one <= other for one, other in pairs) and any(one < other for one, other in pairs)


def _check_same(path: Path, previous: Description, now: Description, *, longer: bool) -> None:
    for what in ("kind", "model", "training", "backbone", "flow", "policy", "data", "motion_source", "started_from"):
        one, other = (_resume_relevant(getattr(item, what), what) for item in (previous, now))
        if what == "training" and longer:
            one["loop"], other["loop"] = _without(one["loop"], LENGTH), _without(other["loop"], LENGTH)
        difference = first_difference(one, other, what)
        if difference is not None:
            name, before, after = difference
            raise MismatchError(
                f"{path} was trained with {name} = {before!r}, now it is {after!r}; expected the same to continue it. "
                "Use the same settings, another --out, or --fresh to start again."
            )


def _resume_relevant(value: Any, what: str) -> Any:
    plain = to_json(value)
    if what == "training":
        plain["loop"] = _without(plain["loop"], FREE_TO_CHANGE)
        plain["backbone"] = _without(plain["backbone"], PROVENANCE)
        plain = {**plain, **{name: _without_notes(plain[name]) for name in ("embodiment", "also") if name in plain}}
    if what in ("policy", "data", "flow", "motion_source", "started_from"):
        return _without_notes(plain)
    if what == "backbone":
        plain["description"] = _without(plain["description"], PROVENANCE)
    return plain


def _without_notes(plain: Any) -> Any:
    """Leaves away what earlier versions did not note, and what the rest of a record tells as well."""
    match plain:
        case {}:
            return {name: _without_notes(item) for name, item in plain.items() if name not in NOTES}
        case [*items]:
            return [_without_notes(item) for item in items]
    return plain


def _without(plain: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: item for key, item in plain.items() if key not in names}


def first_difference(one: Any, other: Any, name: str) -> tuple[str, Any, Any] | None:
    """Finds where two plain JSON values first differ: the dotted name and both values."""
    match one, other:
        case {}, {}:
            differences = (
                first_difference(one.get(key), other.get(key), f"{name}.{key}")
                for key in [*one, *(key for key in other if key not in one)]
            )
            return next((difference for difference in differences if difference is not None), None)
    return None if one == other else (name, one, other)


def _run_record(description: Description) -> dict[str, Any]:
    return {
        "format": "lamp-run",
        "version": 1,
        "stage": description.kind,
        "training": to_json(description.training),
        "data": to_json(description.data),
        "code": lamp.version.code_version(),
        "packages": lamp.version.package_versions(),
    }
