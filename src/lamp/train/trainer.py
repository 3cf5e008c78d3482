"""The training loop, the same for both stages, and how it is stopped."""

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
from typing import Any, Literal

import torch
from torch import Tensor

from lamp.data.dataloader import BatchShare, DataLoaderDiedError
from lamp.errors import ConfigError, FailedElsewhereError, LampError
from lamp.progress import Progress
from lamp.seeding import global_states, restore_global_states, seed_everything
from lamp.train.breakdown import AnyBatch, add_counts, weighted, with_labels
from lamp.train.config import LoopConfig
from lamp.train.distributed import SINGLE_PROCESS, DistributedContext
from lamp.train.metrics import Journal, LogInterval, device_memory
from lamp.train.optimizer import Ema, set_learning_rates
from lamp.train.parallel import build_strategy
from lamp.train.stages import Stage
from lamp.train.training_state import TrainingState

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


class Trainer:
    """Trains a stage; `run` goes from the given state (or the start) to the end, or to where it must stop.

    Several processes each take their share of every batch, and do all of the following together.
    """

    def __init__(
        self,
        stage: Stage[Any],
        config: LoopConfig,
        out: Path,
        save: Save,
        resume: TrainingState | None = None,
        distributed: DistributedContext = SINGLE_PROCESS,
    ):
        """
        Raises:
            ConfigError: A step has fewer samples than processes and micro-batches.
        """
        torch.set_num_threads(config.threads)
        self.stage, self.config, self.out, self.save, self.distributed = stage, config, out, save, distributed
        count, parts = distributed.world_size, config.accumulate
        if stage.batch_samples < count * parts:
            raise ConfigError(
                f"a step has {stage.batch_samples} samples, for {count} processes and {parts} parts each; expected at "
                f"least {count * parts}: raise batch_size (or use more data), or lower accumulate."
            )
        self.strategy = build_strategy(stage, config, distributed)
        self.parameters = self.strategy.parameters
        self.labels = {**stage.labels, "grad_norms": self.strategy.gradients.modules}
        self.ema = Ema(self.parameters, config.ema) if config.ema is not None else None
        self.step = 0
        self.samples = 0
        """Trained on by this call."""
        self.elapsed_before_s = 0.0
        self.started = time.perf_counter()
        seed_everything(config.seed, "start")
        if resume is not None:
            self._restore(resume)
        self.elapsed_s = self.elapsed_before_s
        """Time spent on this run, earlier calls included, by the main process's clock after the last step. [s]"""

    def train_step(self, interval: LogInterval) -> None:
        """Takes one optimizer step: forward and backward of each micro-batch, then clipping and the update."""
        config, stage, strategy = self.config, self.stage, self.strategy
        stage.train_mode()
        started = time.perf_counter()
        micro_batches = self._micro_batches(stage.next_batch(self.step))
        waited_s = time.perf_counter() - started
        # A loss is a mean over what is supervised: each micro-batch weighs as its count in the counts of all processes.
        counts = [stage.counts(batch) for _, batch in micro_batches]
        totals = self.distributed.sum(add_counts(counts))
        set_learning_rates(strategy.optimiser, self.fraction, min_lr=config.min_lr)
        noise = config.noise.at(config.seed, "loss", self.step, rows=stage.batch_samples)
        values: dict[str, Tensor] = {}
        for number, ((share, batch), count) in enumerate(zip(micro_batches, counts, strict=True), start=1):
            rows = share.rows(stage.batch_samples)
            seed_everything(config.seed, "dropout", self.step, *([share.index] if share.index else []))
            if "prior" in totals:
                batch = replace(batch, guided=bool(totals["prior"] > 0))
            with strategy.micro_batch(last=number == len(micro_batches)):
                with config.precision.autocast(config.device):
                    loss = strategy.loss(batch.to(config.device), noise.part(rows.start, len(rows)))
                means = {"loss": loss.total, **loss.parts}
                mine = {name: weighted(value, name, count, totals, parts=share.of) for name, value in means.items()}
                # DDP and FSDP average gradients over processes, where the weighted losses are to be added up.
                (mine["loss"] * self.distributed.world_size if share.of > 1 else loss.total).backward()
            values = {name: values[name] + value.detach() if values else value for name, value in mine.items()}
        norms = strategy.optimizer_step(config.clip)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        self.samples += stage.batch_samples
        # Every process knows the norms of all gradients, and the interval adds up what processes report.
        values["grad_norm"], values["grad_norms"] = (norm / self.distributed.world_size for norm in norms)
        interval.add(values, samples=len(self.distributed.share.rows(stage.batch_samples)), waited_s=waited_s)

    def _micro_batches(self, batch: AnyBatch) -> list[tuple[BatchShare, AnyBatch]]:
        """Cuts this process's share of a batch into micro-batches, each computed at once."""
        total, mine = self.stage.batch_samples, self.distributed.share
        if self.config.accumulate == 1:
            return [(mine, batch)]
        start = mine.rows(total).start
        shares = [(share, share.rows(total)) for share in mine.parts(self.config.accumulate)]
        return [(share, batch.rows(rows.start - start, len(rows))) for share, rows in shares]

    def run(self) -> Outcome:
        """Trains until the schedule is done, the time limit is reached, or a process is asked to stop."""
        self.started = time.perf_counter()
        main = self.distributed.is_main
        progress = Progress(self.stage.name, self.config.steps, "steps", done=self.step) if main else None
        journal = Journal(self.out, from_step=self.step, trackers=self.config.trackers) if main else None
        interval = LogInterval()
        try:
            with stop_request() as stop:
                reason = self._stop_reason(stop)
                while reason is None:
                    try:
                        self.train_step(interval)
                    except DataLoaderDiedError:
                        # The signal that asks this process to stop may also have ended its loader's processes.
                        if self.distributed.world_size > 1 or not stop.wait(GROUP_S):
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
        """Takes some real steps and returns the seconds of each; nothing is logged or saved."""
        seconds = []
        for _ in range(steps):
            interval, started = LogInterval(), time.perf_counter()
            self.train_step(interval)
            interval.read(self.distributed)  # waits for the device
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
            optimiser=self.strategy.optimiser_tensors(),
            raw={name: parameter.detach() for name, parameter in self.parameters.items()},
            average=self.ema.average if self.ema else None,
            random_tensors=tensors,
            random_plain=plain,
            sampler=self.stage.sampler_state(),
            sharded=self.strategy.sharded,
        )

    def _restore(self, state: TrainingState) -> None:
        state = state.read_shards(self.parameters, self.distributed.group)
        self.strategy.restore(state.raw, state.optimiser)
        if self.ema is not None and state.average is not None:
            self.ema.restore(state.average)
        restore_global_states(state.random_tensors, state.random_plain)
        self.stage.restore_sampler(dict(state.sampler))
        self.step, self.elapsed_before_s = state.step, state.elapsed_s

    def _stop_reason(self, stop: threading.Event) -> Reason | None:
        """Whether to stop, the same in all processes."""
        spent, limit = time.perf_counter() - self.started, self.config.time_limit_s
        main, late = self.distributed.is_main, limit is not None and spent >= limit
        mine = {"stop": float(stop.is_set()), "spent": spent if main else 0.0, "late": float(late and main)}
        agreed = self.distributed.sum({name: torch.tensor(value, dtype=torch.float64) for name, value in mine.items()})
        self.elapsed_s = self.elapsed_before_s + float(agreed["spent"])
        if self.fraction >= 1.0:
            return "finished"
        if agreed["stop"]:
            return "interrupted"
        return "time limit" if agreed["late"] else None

    def _report(
        self, interval: LogInterval, journal: Journal | None, progress: Progress | None, reason: Reason | None
    ) -> LogInterval:
        """Writes what is due after this step; returns the interval that the next step adds to."""
        config = self.config
        validate = reason == "finished" or self.step % config.validate_every == 0
        due = (config.log_every, config.validate_every, config.checkpoint_every)
        if progress is not None:
            progress.update(self.step, left_s=self._left_s())
        if reason is None and all(self.step % every for every in due):
            return interval
        values = interval.read(self.distributed)
        self._check_finite(values)
        with self.strategy.unsharded():
            values |= {"lr": self.strategy.optimiser.param_groups[0]["lr"], **self.stage.gauges()}
        values |= device_memory(config.device, self.distributed)
        if journal is not None and progress is not None:
            progress.update(self.step, note=self._note(values), left_s=self._left_s(), now=reason is not None)
            journal.write("train", self.step, self.elapsed_s, with_labels(values, self.labels))
        if validate:
            self._validate(journal, progress)
        return LogInterval()

    def _validate(self, journal: Journal | None, progress: Progress | None) -> None:
        with nullcontext() if self.ema is None else self.ema.applied(), self.strategy.unsharded():
            measured = self.stage.validate()
        if not measured or journal is None or progress is None:
            return
        journal.write("validation", self.step, self.elapsed_s, with_labels(measured, self.labels))
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
                raise LampError(message) if self.distributed.is_main else FailedElsewhereError(message)


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
