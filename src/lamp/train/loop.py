"""The training loop, the same for both stages: a stage says what is trained on what, the loop does the rest."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamp.errors import LampError
from lamp.train.breakdown import labelled, labels_of
from lamp.train.configs import LoopConfig
from lamp.train.ema import Ema
from lamp.train.gradients import Gradients
from lamp.train.metrics import Interval, Journal, Progress, Value, clock, device_memory
from lamp.train.optimiser import cosine, optimiser_tensors, restore_optimiser, set_learning_rate
from lamp.train.randomness import generator_at, global_states, restore_global_states, seed_everything
from lamp.train.state import TrainingState
from lamp.types import Batch


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """The loss of one batch, and the parts of it that are worth a line in the log."""

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor]


@runtime_checkable
class Stage(Protocol):
    """What differs between the stages."""

    name: str

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name; everything else is frozen."""
        ...

    def train_mode(self) -> None:
        """Puts the trained parts into training mode and the frozen ones into evaluation mode."""
        ...

    def next_batch(self, step: int) -> Batch: ...

    def loss(self, batch: Batch, generator: torch.Generator) -> StepLoss: ...

    def gauges(self) -> dict[str, float]:
        """Values to log beside the loss, such as the gate."""
        ...

    def validate(self) -> dict[str, Value]:
        """Measures the held-out episodes, with the same noise every time; empty where none are held out."""
        ...

    def sampler_state(self) -> dict[str, Any]: ...

    def restore_sampler(self, state: dict[str, Any]) -> None: ...


Save = Callable[[TrainingState], None]
Reason = Literal["finished", "time limit", "interrupted", "planned"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of the loop ended."""

    reason: Reason
    step: int
    elapsed_s: float
    samples_per_s: float

    @property
    def finished(self) -> bool:
        return self.reason == "finished"


class Loop:
    """Optimises a stage; `run` goes from the given state (or the start) to the end, or to where it must stop."""

    def __init__(self, stage: Stage, config: LoopConfig, out: Path, save: Save, resume: TrainingState | None = None):
        torch.set_num_threads(config.threads)
        self.stage, self.config, self.out, self.save = stage, config, out, save
        self.parameters = stage.parameters()
        self.gradients = Gradients(self.parameters)
        self.labels = {**labels_of(stage), "grad_norms": self.gradients.modules}
        self.optimiser = config.optimiser.build(self.parameters)
        self.ema = Ema(self.parameters, config.ema) if config.ema is not None else None
        self.step = 0
        self.samples = 0
        """Taken in by this call."""
        self.elapsed_before_s = 0.0
        self.started = time.perf_counter()
        seed_everything(config.seed, "start")
        if resume is not None:
            self._restore(resume)

    def run(self) -> Outcome:
        """Trains until the schedule is done, the time limit is reached, or the process is asked to stop."""
        self.started = time.perf_counter()
        progress = Progress(self.stage.name)
        journal = Journal(self.out, from_step=self.step, trackers=self.config.trackers)
        interval = Interval()
        try:
            with _stop_request() as stop:
                reason = self._stop_reason(stop)
                while reason is None:
                    self._train_step(interval)
                    reason = self._stop_reason(stop)
                    interval = self._report(interval, journal, progress, reason)
                    if reason is None and self.step % self.config.checkpoint_every == 0:
                        self.save(self.state(finished=False))
            self.save(self.state(finished=reason == "finished"))
        finally:
            progress.close()
            journal.close()
        session_s = time.perf_counter() - self.started
        rate = self.samples / max(session_s, 1e-9)
        return Outcome(reason=reason, step=self.step, elapsed_s=self.elapsed_s, samples_per_s=rate)

    def rehearse(self, steps: int) -> list[float]:
        """Takes some steps in earnest, and returns the seconds of each; nothing is logged or saved."""
        seconds = []
        for _ in range(steps):
            interval, started = Interval(), time.perf_counter()
            self._train_step(interval)
            interval.read()  # waits for the device
            seconds.append(time.perf_counter() - started)
        return seconds

    @property
    def elapsed_s(self) -> float:
        """Time spent on this run, earlier calls included. [s]"""
        return self.elapsed_before_s + time.perf_counter() - self.started

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
            optimiser=optimiser_tensors(self.optimiser, self.parameters),
            raw={name: parameter.detach() for name, parameter in self.parameters.items()},
            average=self.ema.average if self.ema else None,
            random_tensors=tensors,
            random_plain=plain,
            sampler=self.stage.sampler_state(),
        )

    @torch.no_grad()
    def _restore(self, state: TrainingState) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(state.raw[name])
        restore_optimiser(self.optimiser, self.parameters, state.optimiser)
        if self.ema is not None and state.average is not None:
            self.ema.restore(state.average)
        restore_global_states(state.random_tensors, state.random_plain)
        self.stage.restore_sampler(dict(state.sampler))
        self.step, self.elapsed_before_s = state.step, state.elapsed_s

    def _stop_reason(self, stop: threading.Event) -> Reason | None:
        if self.fraction >= 1.0:
            return "finished"
        if stop.is_set():
            return "interrupted"
        limit = self.config.time_limit_s
        return "time limit" if limit is not None and time.perf_counter() - self.started >= limit else None

    def _train_step(self, interval: Interval) -> None:
        config = self.config
        self.stage.train_mode()
        seed_everything(config.seed, "dropout", self.step)
        waiting = time.perf_counter()
        batch = self.stage.next_batch(self.step).to(config.device)
        waited = time.perf_counter() - waiting
        set_learning_rate(self.optimiser, cosine(self.fraction, lr=config.optimiser.lr, min_lr=config.min_lr))
        with config.precision.autocast(config.device):
            loss = self.stage.loss(batch, generator_at(config.seed, "loss", self.step))
        loss.total.backward()
        norms = self.gradients.clip(config.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        values = {"loss": loss.total, **loss.parts, "grad_norm": norms.total, "grad_norms": norms.by_module}
        samples = len(batch.encoded.tokens)
        self.samples += samples
        interval.add(values, samples=samples, waited_s=waited)

    def _report(self, interval: Interval, journal: Journal, progress: Progress, reason: Reason | None) -> Interval:
        """Writes what is due after this step; returns the interval that the next step adds to."""
        config = self.config
        validate = reason == "finished" or self.step % config.validate_every == 0
        due = (config.log_every, config.validate_every, config.checkpoint_every)
        if reason is None and all(self.step % every for every in due):
            return interval
        values = interval.read()
        self._check_finite(values)
        values |= {"lr": self.optimiser.param_groups[0]["lr"], **self.stage.gauges(), **device_memory(config.device)}
        journal.write("train", self.step, self.elapsed_s, labelled(values, self.labels))
        progress.show(self._line(values), force=reason is not None)
        if validate:
            self._validate(journal, progress)
        return Interval()

    def _validate(self, journal: Journal, progress: Progress) -> None:
        if self.ema is None:
            measured = self.stage.validate()
        else:
            with self.ema.applied():
                measured = self.stage.validate()
        if not measured:
            return
        journal.write("validation", self.step, self.elapsed_s, labelled(measured, self.labels))
        numbers = {name: value for name, value in measured.items() if isinstance(value, float)}
        progress.show("validation  " + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()), force=True)

    def _line(self, values: Mapping[str, Any]) -> str:
        spent, fraction = self.elapsed_s, self.fraction
        left = clock(spent / fraction * (1.0 - fraction)) if fraction > 0.0 else "?"
        return (
            f"step {self.step}/{self.config.steps}  loss {values['loss']:.4f}  lr {values['lr']:.2e}  "
            f"{values['samples_per_s']:.0f} samples/s  {left} left"
        )

    def _check_finite(self, values: Mapping[str, Any]) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise LampError(
                    f"{name} is {values[name]} after step {self.step}; expected a finite number. The last checkpoint is kept; "
                    f"try a smaller lr than {self.config.optimiser.lr}, a smaller clip, or Float32 precision."
                )


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the present step; a second one acts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
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
