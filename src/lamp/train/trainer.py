"""The training loop, the same for both stages (a stage says what is trained on what), and how it is stopped."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from lamp.data.dataloader import LoaderDiedError, Share
from lamp.errors import ConfigError, FailedElsewhereError, LampError
from lamp.progress import Progress
from lamp.seeding import Source, global_states, restore_global_states, seed_everything
from lamp.train.breakdown import Counts, added, labelled, labels_of, weighted
from lamp.train.config import LoopConfig
from lamp.train.distributed import SINGLE, Processes
from lamp.train.metrics import Interval, Journal, Value, device_memory
from lamp.train.optimizer import Ema, set_learning_rates
from lamp.train.parallel import AnyBatch, StepLoss, Trained, place
from lamp.train.training_state import TrainingState

B = TypeVar("B", bound=AnyBatch)


@runtime_checkable
class Stage(Trained[B], Protocol[B]):
    """What differs between the stages."""

    name: str

    @property
    def batch_samples(self) -> int:
        """Samples of a step, over all processes."""
        ...

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name; everything else is frozen."""
        ...

    def train_mode(self) -> None:
        """Puts the trained parts into training mode and the frozen ones into evaluation mode."""
        ...

    def next_batch(self, step: int) -> B:
        """Returns this process's share of the next batch."""
        ...

    def counts(self, batch: B) -> Counts: ...

    def loss(self, batch: B, source: Source) -> StepLoss: ...

    def gauges(self) -> dict[str, float]:
        """Values to log beside the loss, such as the gate."""
        ...

    def validate(self) -> dict[str, Value]:
        """Measures the held-out episodes, with the same noise every time; empty where none are held out."""
        ...

    def sampler_state(self) -> dict[str, Any]: ...

    def restore_sampler(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None:
        """Ends what the stage has started besides this process."""
        ...


Save = Callable[[TrainingState], None]
GROUP_S = 0.5
"""Within this time a signal that ends all processes of a group has come to each. [s]"""
Reason = Literal["finished", "time limit", "interrupted", "planned"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of the loop ended."""

    reason: Reason
    step: int
    elapsed_s: float
    samples_per_s: float
    signal: int | None = None
    """The number of the one that interrupted it, or came while the last checkpoint was written, where this process had it."""

    @property
    def finished(self) -> bool:
        return self.reason == "finished"


class Loop:
    """Optimises a stage; `run` goes from the given state (or the start) to the end, or to where it must stop.

    Several processes each take their share of every batch, and do all of the following together.
    """

    def __init__(
        self,
        stage: Stage[Any],
        config: LoopConfig,
        out: Path,
        save: Save,
        resume: TrainingState | None = None,
        processes: Processes = SINGLE,
    ):
        """
        Raises:
            ConfigError: A step has too few samples to share out.
        """
        torch.set_num_threads(config.threads)
        self.stage, self.config, self.out, self.save, self.processes = stage, config, out, save, processes
        self._check_shares()
        self.placement = place(stage, config, processes)
        self.parameters = self.placement.parameters
        self.labels = {**labels_of(stage), "grad_norms": self.placement.modules}
        self.ema = Ema(self.parameters, config.ema) if config.ema is not None else None
        self.step = 0
        self.samples = 0
        """Taken in by this call."""
        self.elapsed_before_s = 0.0
        self.started = time.perf_counter()
        seed_everything(config.seed, "start")
        if resume is not None:
            self._restore(resume)
        self.elapsed_s = self.elapsed_before_s
        """Time spent on this run, earlier calls included, by the main process's clock after the last step. [s]"""

    def run(self) -> Outcome:
        """Trains until the schedule is done, the time limit is reached, or a process is asked to stop."""
        self.started = time.perf_counter()
        here = self.processes.main
        progress = Progress(self.stage.name, self.config.steps, "steps", done=self.step) if here else None
        journal = Journal(self.out, from_step=self.step, trackers=self.config.trackers) if here else None
        interval = Interval()
        try:
            with stop_request() as stop:
                reason = self._stop_reason(stop)
                while reason is None:
                    try:
                        self._train_step(interval)
                    except LoaderDiedError:
                        # What asks this process to stop may ask those that load for it as well, and ends them.
                        if self.processes.count > 1 or not stop.wait(GROUP_S):
                            raise
                        reason = "interrupted"
                        break
                    reason = self._stop_reason(stop)
                    interval = self._report(interval, journal, progress, reason)
                    if reason is None and self.step % self.config.checkpoint_every == 0:
                        self.save(self.state(finished=False))
                self.save(self.state(finished=reason == "finished"))
        finally:
            if progress is not None:
                progress.close()
            if journal is not None:
                journal.close()
            self.stage.close()
        rate = self.samples / max(time.perf_counter() - self.started, 1e-9)
        return Outcome(reason=reason, step=self.step, elapsed_s=self.elapsed_s, samples_per_s=rate, signal=stop.number)

    def rehearse(self, steps: int) -> list[float]:
        """Takes some steps in earnest, and returns the seconds of each; nothing is logged or saved."""
        seconds = []
        for _ in range(steps):
            interval, started = Interval(), time.perf_counter()
            self._train_step(interval)
            interval.read(self.processes)  # waits for the device
            seconds.append(time.perf_counter() - started)
        return seconds

    @property
    def fraction(self) -> float:
        """Where the schedule is: 0 at the start, 1 at the end."""
        by_steps = self.step / self.config.steps
        budget = self.config.time_budget_s
        return by_steps if budget is None else max(by_steps, self.elapsed_s / budget)

    def state(self, *, finished: bool) -> TrainingState:
        """Everything that a later call needs to go on as if nothing had happened."""
        tensors, plain = global_states()
        return TrainingState(
            step=self.step,
            elapsed_s=self.elapsed_s,
            finished=finished,
            optimiser=self.placement.optimiser_tensors(),
            raw={name: parameter.detach() for name, parameter in self.parameters.items()},
            average=self.ema.average if self.ema else None,
            random_tensors=tensors,
            random_plain=plain,
            sampler=self.stage.sampler_state(),
            sharded=self.placement.sharded,
        )

    def _restore(self, state: TrainingState) -> None:
        if state.shards is not None:
            state = state.read_shards(self.parameters, self.processes.group)
        self.placement.restore(state.raw, state.optimiser)
        if self.ema is not None and state.average is not None:
            self.ema.restore(state.average)
        restore_global_states(state.random_tensors, state.random_plain)
        self.stage.restore_sampler(dict(state.sampler))
        self.step, self.elapsed_before_s = state.step, state.elapsed_s

    def _check_shares(self) -> None:
        count, parts = self.processes.count, self.config.accumulate
        if self.stage.batch_samples < count * parts:
            raise ConfigError(
                f"a step has {self.stage.batch_samples} samples, for {count} processes and {parts} parts each; expected at "
                f"least {count * parts}: raise batch_size (or use more data), or lower accumulate."
            )

    def _stop_reason(self, stop: threading.Event) -> Reason | None:
        """Whether to stop, the same in all processes."""
        spent, limit = time.perf_counter() - self.started, self.config.time_limit_s
        main, late = self.processes.main, limit is not None and spent >= limit
        said = {"stop": float(stop.is_set()), "spent": spent if main else 0.0, "late": float(late and main)}
        agreed = self.processes.sum({name: torch.tensor(value, dtype=torch.float64) for name, value in said.items()})
        self.elapsed_s = self.elapsed_before_s + float(agreed["spent"])
        if self.fraction >= 1.0:
            return "finished"
        if agreed["stop"]:
            return "interrupted"
        return "time limit" if agreed["late"] else None

    def _train_step(self, interval: Interval) -> None:
        config = self.config
        self.stage.train_mode()
        waiting = time.perf_counter()
        parts = self._parts(self.stage.next_batch(self.step))
        waited = time.perf_counter() - waiting
        counts = [self.stage.counts(part) for _, part in parts]
        totals = self.processes.sum(added(counts))
        set_learning_rates(self.placement.optimiser, self.fraction, min_lr=config.min_lr)
        noise = config.noise.at(config.seed, "loss", self.step, rows=self.stage.batch_samples)
        values: dict[str, Tensor] = {}
        for number, ((share, part), count) in enumerate(zip(parts, counts, strict=True), start=1):
            rows = share.rows(self.stage.batch_samples)
            seed_everything(config.seed, "dropout", self.step, *([share.index] if share.index else []))
            if "prior" in totals:
                part = replace(part, guided=bool(totals["prior"] > 0))
            with self.placement.part(last=number == len(parts)):
                with config.precision.autocast(config.device):
                    loss = self.placement.loss(part.to(config.device), noise.part(rows.start, len(rows)))
                whole = {"loss": loss.total, **loss.parts}
                mine = {name: weighted(value, name, count, totals, parts=share.of) for name, value in whole.items()}
                # Gradients of several processes are averaged, and the losses of their parts add up.
                self.placement.backward(mine["loss"] * self.processes.count if share.of > 1 else loss.total)
            values = {name: values[name] + value.detach() if values else value for name, value in mine.items()}
        norms = self.placement.step(config.clip)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        self.samples += self.stage.batch_samples
        # Every process knows the norms of all gradients, and what processes report is added up.
        values["grad_norm"], values["grad_norms"] = (norm / self.processes.count for norm in norms)
        interval.add(
            values, samples=sum(len(share.rows(self.stage.batch_samples)) for share, _ in parts), waited_s=waited
        )

    def _parts(self, batch: AnyBatch) -> list[tuple[Share, AnyBatch]]:
        """Cuts this process's share of a batch into what is computed at once."""
        total, mine = self.stage.batch_samples, self.processes.share
        if self.config.accumulate == 1:
            return [(mine, batch)]
        start = mine.rows(total).start
        shares = [(share, share.rows(total)) for share in mine.parts(self.config.accumulate)]
        return [(share, batch.rows(rows.start - start, len(rows))) for share, rows in shares]

    def _report(
        self, interval: Interval, journal: Journal | None, progress: Progress | None, reason: Reason | None
    ) -> Interval:
        """Writes what is due after this step; returns the interval that the next step adds to."""
        config = self.config
        validate = reason == "finished" or self.step % config.validate_every == 0
        due = (config.log_every, config.validate_every, config.checkpoint_every)
        if progress is not None:
            progress.update(self.step, left_s=self._left_s())
        if reason is None and all(self.step % every for every in due):
            return interval
        values = interval.read(self.processes)
        self._check_finite(values)
        with self.placement.whole():
            values |= {"lr": self.placement.optimiser.param_groups[0]["lr"], **self.stage.gauges()}
        values |= device_memory(config.device, self.processes)
        if journal is not None and progress is not None:
            progress.update(self.step, note=self._note(values), left_s=self._left_s(), now=reason is not None)
            journal.write("train", self.step, self.elapsed_s, labelled(values, self.labels))
        if validate:
            self._validate(journal, progress)
        return Interval()

    def _validate(self, journal: Journal | None, progress: Progress | None) -> None:
        with nullcontext() if self.ema is None else self.ema.applied(), self.placement.whole():
            measured = self.stage.validate()
        if not measured or journal is None or progress is None:
            return
        journal.write("validation", self.step, self.elapsed_s, labelled(measured, self.labels))
        numbers = {name: value for name, value in measured.items() if isinstance(value, float)}
        progress.say("validation  " + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))

    def _left_s(self) -> float | None:
        """How long the training will take: a budget of time may end it before its last step. [s]"""
        fraction = self.fraction
        return self.elapsed_s / fraction * (1.0 - fraction) if fraction > 0.0 else None

    def _note(self, values: Mapping[str, Any]) -> str:
        return f"loss {values['loss']:.4f}, lr {values['lr']:.2e}, {values['samples_per_s']:.0f} samples/s"

    def _check_finite(self, values: Mapping[str, Any]) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                message = (
                    f"{name} is {values[name]} after step {self.step}; expected a finite number. The last checkpoint is kept; "
                    f"try a smaller lr than {self.config.optimiser.lr}, a smaller clip, or Float32 precision."
                )
                raise LampError(message) if self.processes.main else FailedElsewhereError(message)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest(threading.Event):
    """Set once the process is asked to stop."""

    number: int | None = None
    """Of the signal that asked."""


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request to stop after the present step; a second one acts at once.

    A hangup that the process was started to ignore (`nohup`) stays ignored.
    """
    event = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {name: signal.getsignal(name) for name in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def request(number: int, frame: FrameType | None) -> None:
        event.number = number
        event.set()
        for name, handler in before.items():
            signal.signal(name, handler)

    for name in before:
        signal.signal(name, request)
    try:
        yield event
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
