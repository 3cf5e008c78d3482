"""The checkpoints of an evaluation: opened when first needed, answering the observations of many simulators at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from lamp.benchmark.controls import Blank, Checkpoint, Condition, WrongInstruction, control
from lamp.benchmark.runs import checkpoint_hash
from lamp.benchmark.workers import Request
from lamp.errors import ConfigError, MismatchError
from lamp_client.types import ActionChunk


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
    def act_batch(self) -> Callable[..., list[ActionChunk]]:
        """(observations, noise seeds, foresight=whether to predict points too) -> a chunk for each observation."""
        ...


class Policies:
    """The checkpoints that an evaluation asks.

    Args:
        load: Opens the policy of a checkpoint folder.
    """

    def __init__(self, load: Callable[[Path], BatchPolicy]) -> None:
        self._load = load
        self._opened: dict[Path, BatchPolicy] = {}
        self._paths: dict[str, Path] = {}

    def conditions(
        self,
        checkpoints: Iterable[tuple[Path | None, str | None]],
        controls: Iterable[str],
        data: Path | None,
        tasks: tuple[int, ...] = (),
    ) -> dict[str, Condition]:
        """Builds the conditions by name, policies first.

        Args:
            checkpoints: Folders and names; where a name is None, the checkpoint's own is taken: with or without motion.
            controls: Names of controls; those that ask a policy ask the first checkpoint.
            data: The dataset that the replay control repeats.
            tasks: Those that are evaluated.

        Raises:
            ConfigError: Two conditions have the same name, or a control lacks what it needs.
        """
        given = [(path, name) for path, name in checkpoints if path is not None]
        first = given[0][0] if given else None
        found: list[Condition] = [Checkpoint(name=name or self._own_name(path), path=path) for path, name in given]
        found += [control(name, checkpoint=first, data=data, tasks=tasks) for name in controls]
        names = [condition.name for condition in found]
        if len(set(names)) != len(names):
            raise ConfigError(
                f"conditions {', '.join(names)}: expected different names; give --label and --against-label"
            )
        self._paths = {c.name: c.path for c in found if isinstance(c, Checkpoint | WrongInstruction | Blank)}
        return {condition.name: condition for condition in found}

    def hashes(self, conditions: Iterable[str]) -> dict[str, str]:
        """Returns the content hash of the checkpoint that each condition asks; empty where it asks none."""
        known = {path: checkpoint_hash(path) for path in set(self._paths.values())}
        return {name: known[self._paths[name]] if name in self._paths else "" for name in conditions}

    def execute(self, override: int | None) -> dict[str, int]:
        """Returns how many actions of a chunk each asking condition executes: the checkpoint's number, unless overridden."""
        return {name: override or self._policy(path).execute for name, path in self._paths.items()}

    def answer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        """Answers requests of several workers, one forward pass for all that ask the same checkpoint."""
        groups: dict[tuple[Path, bool], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault((self._paths[request.episode.condition], request.foresight), []).append(index)
        chunks: dict[int, ActionChunk] = {}
        for (path, foresight), indices in groups.items():
            answered = self._policy(path).act_batch(
                [requests[index].observation for index in indices],
                [requests[index].noise_seed for index in indices],
                foresight=foresight,
            )
            chunks.update(zip(indices, answered, strict=True))
        return [chunks[index] for index in range(len(requests))]

    def _own_name(self, path: Path) -> str:
        return "with_motion" if self._policy(path).uses_motion else "without_motion"

    def _policy(self, path: Path) -> BatchPolicy:
        if path not in self._opened:
            self._opened[path] = self._load(path)
        return self._opened[path]


class PolicyOpener:
    """Opens LaMP's policies of checkpoint folders; those that were trained on the same backbone share it.

    Args:
        execute: Actions of a chunk that will be executed; None: as many as the checkpoint says.
        fast: Prepare the fast path.
    """

    def __init__(self, execute: int | None = None, *, fast: bool = True) -> None:
        from lamp.train.sharing import Backbones

        self._backbones = Backbones()
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

        from lamp.policy import LaMPPolicy
        from lamp.train.description import read_description
        from lamp.train.running import check_device

        check_device(device, "--device")
        record = read_description(path).policy
        if self._execute is not None and record is not None and self._execute > record.chunk:
            raise MismatchError(
                f"{path} has chunks of {record.chunk} actions, and {self._execute} are to be executed of each; expected 1 to "
                f"{record.chunk}."
            )
        torch.set_num_threads(threads)
        policy = LaMPPolicy.from_checkpoint(path, device=device, backbone=self._backbones)
        return policy.compile() if self._fast else policy
