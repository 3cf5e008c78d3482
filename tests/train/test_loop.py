"""The loop on a toy stage: exact resume, schedule, averaging, clean stops."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lamp.configuration import from_json, to_json
from lamp.data.dataloader import DataLoaderDiedError
from lamp.errors import ConfigError, LampError
from lamp.json_files import read_lines_json
from lamp.seeding import Source, generator_at, normal
from lamp.train.breakdown import StepLoss
from lamp.train.checkpoint_metadata import Description
from lamp.train.config import BFloat16, LoopConfig, multiplies_bfloat16
from lamp.train.distributed import DistributedContext
from lamp.train.dry_run import Planner
from lamp.train.optimizer import AdamW
from lamp.train.parallel import SingleDevice, build_strategy
from lamp.train.stages import Stage
from lamp.train.trainer import Trainer
from lamp.train.training_state import TrainingState
from lamp.types import Encoded, TokenBatch

CONFIG = LoopConfig(
    steps=30,
    batch_size=8,
    optimiser=AdamW(lr=1e-2),
    ema=0.9,
    log_every=5,
    checkpoint_every=10,
    validate_every=15,
    threads=1,
)


class Toy(Stage[Any]):
    """Fits a linear map with dropout: the smallest thing that has trained and frozen parts and reads every kind of noise."""

    name = "toy"
    batch_samples = 8  # pyright: ignore
    blocks: dict[nn.Module, tuple[str, ...]] = {}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self, interrupt_at: int | None = None, poison_at: int | None = None, loader_dies: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 6)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 3))
        self.position = 0
        self.interrupt_at, self.poison_at, self.loader_dies = interrupt_at, poison_at, loader_dies

    @property
    def module(self) -> nn.Module:
        return self.head

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.head.named_parameters())

    def counts(self, batch: TokenBatch) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor(float(len(batch.encoded.mask)))}

    def close(self) -> None:
        pass

    def train_mode(self) -> None:
        self.head.train()

    def next_batch(self, step: int) -> TokenBatch:
        if step == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.loader_dies and step >= 12:
            raise DataLoaderDiedError("a worker process of the loader died")
        self.position += 1
        tokens = torch.randn(8, 1, 4, generator=generator_at("toy", self.position))
        tokens = tokens * (math.nan if step == self.poison_at else 1.0)
        return TokenBatch(encoded=Encoded(tokens=tokens, mask=torch.ones(8, 1, dtype=torch.bool)))

    def loss(self, batch: TokenBatch, source: Source) -> StepLoss:
        noise = normal(tuple(batch.encoded.tokens.shape), source)
        error = self.head(self.frozen(batch.encoded.tokens + 0.1 * noise)) - 1.0
        return StepLoss(total=error.float().square().mean(), parts={"per_dim": error.detach().square().mean((0, 1))})

    def gauges(self) -> dict[str, float]:
        return {"gate": 0.5}

    def validate(self) -> dict[str, Any]:
        return {"loss": float(self.parameters()["1.weight"].detach().square().sum())}

    def sampler_state(self) -> dict[str, Any]:
        return {"position": self.position}

    def restore_sampler(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def run(out: Path, config: LoopConfig = CONFIG, *, resume: TrainingState | None = None, **options: Any):
    states: list[TrainingState] = []
    stage = Toy(**options)

    def save(state: TrainingState) -> None:
        folder = out / f"state-{state.step}"
        state.write(folder)
        states.append(TrainingState.read(folder, {name: value.clone() for name, value in state.weights.items()}))

    outcome = Trainer(stage, config, out, save, resume).run()  # pyright: ignore[reportArgumentType]
    return stage, outcome, states


def test_a_continued_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    straight, outcome, states = run(tmp_path / "straight")
    torch.manual_seed(99)
    resumed, again, _ = run(tmp_path / "resumed", resume=states[1])
    assert outcome.finished and again.finished and states[1].step == 20
    for name, value in straight.parameters().items():
        assert torch.equal(value, resumed.parameters()[name])
    assert resumed.position == straight.position == 30


def test_logged_losses_do_not_depend_on_the_interruption(tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    _, _, states = run(straight)
    before = read_lines_json(straight / "metrics.jsonl")
    for folder in straight.glob("state-*"):
        folder.rename(tmp_path / folder.name)
    run(straight, resume=states[0])
    after = read_lines_json(straight / "metrics.jsonl")
    assert [(line["kind"], line["step"], line["loss"]) for line in before] == [
        (line["kind"], line["step"], line["loss"]) for line in after
    ]
    assert {line["step"] for line in after if line["kind"] == "train"} == {5, 10, 15, 20, 25, 30}
    assert set(after[0]) >= {
        "loss",
        "per_dim",
        "grad_norms",
        "lr",
        "grad_norm",
        "gate",
        "samples_per_s",
        "data_wait_share",
        "elapsed_s",
    }


def test_the_cosine_ends_at_the_least_rate_over_the_real_steps(tmp_path: Path) -> None:
    run(tmp_path)
    rates = {
        line["step"]: line["lr"] for line in read_lines_json(tmp_path / "metrics.jsonl") if line["kind"] == "train"
    }
    expected = 1e-6 + 0.5 * (1e-2 - 1e-6) * (1 + math.cos(math.pi * 29 / 30))
    assert rates[30] == pytest.approx(expected, rel=1e-9)


def test_a_request_to_stop_ends_after_the_step_and_can_be_continued(tmp_path: Path) -> None:
    straight, _, _ = run(tmp_path / "straight")
    _, outcome, states = run(tmp_path / "stopped", interrupt_at=12)
    assert outcome.reason == "interrupted" and outcome.step == 13 and not states[-1].finished
    resumed, again, _ = run(tmp_path / "stopped", resume=states[-1])
    assert again.finished
    assert all(torch.equal(value, resumed.parameters()[name]) for name, value in straight.parameters().items())


def test_a_signal_to_the_whole_group_that_ends_the_loader_too_is_a_request_to_stop(tmp_path: Path) -> None:
    _, outcome, states = run(tmp_path, interrupt_at=12, loader_dies=True)
    assert outcome.reason == "interrupted" and outcome.signal == signal.SIGTERM
    assert outcome.step == 12 == states[-1].step and states[-1].sampler == {"position": 12}
    with pytest.raises(DataLoaderDiedError):
        run(tmp_path / "by itself", loader_dies=True)


def test_a_request_to_stop_while_the_last_checkpoint_is_written_lets_it_be_written(tmp_path: Path) -> None:
    states: list[TrainingState] = []

    def save(state: TrainingState) -> None:
        if state.finished:
            os.kill(os.getpid(), signal.SIGTERM)
        states.append(state)

    outcome = Trainer(Toy(), replace(CONFIG, steps=3), tmp_path, save).run()  # pyright: ignore[reportArgumentType]
    assert outcome.finished and states[-1].finished and outcome.signal == signal.SIGTERM


def test_a_time_limit_stops_unfinished_and_a_time_budget_finishes(tmp_path: Path) -> None:
    long = replace(CONFIG, steps=10_000_000, time_limit_s=0.3)
    _, outcome, states = run(tmp_path / "limit", long)
    assert outcome.reason == "time limit" and not states[-1].finished
    rates = [line["lr"] for line in read_lines_json(tmp_path / "limit" / "metrics.jsonl") if "lr" in line]
    assert rates[-1] == pytest.approx(1e-2, rel=1e-3)
    _, outcome, states = run(tmp_path / "budget", replace(long, time_limit_s=None, time_budget_s=0.3))
    assert outcome.finished and states[-1].finished
    rates = [line["lr"] for line in read_lines_json(tmp_path / "budget" / "metrics.jsonl") if "lr" in line]
    assert rates[-1] < 1e-3


def test_a_loss_that_is_not_finite_is_an_error_and_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(LampError, match=r"loss is nan after step 20.*smaller lr"):
        run(tmp_path, poison_at=17)
    assert sorted(path.name for path in tmp_path.glob("state-*")) == ["state-10"]


def test_the_average_follows_its_closed_form(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=3, checkpoint_every=1)
    _, _, states = run(tmp_path, config)
    name = "1.weight"
    torch.manual_seed(0)
    expected = Toy().parameters()[name].detach().clone()
    for step, state in enumerate(states, start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * state.raw[name]
        assert state.average is not None
        torch.testing.assert_close(state.average[name], expected)


def test_a_step_in_parts_is_the_whole_step(tmp_path: Path) -> None:
    """But for dropout, whose masks differ."""
    config = replace(CONFIG, ema=None, steps=10)

    def trained(name: str, accumulate: int, dropout: float) -> dict[str, torch.Tensor]:
        stage = Toy()
        stage.head[0] = nn.Dropout(dropout)
        Trainer(stage, replace(config, accumulate=accumulate), tmp_path / name, lambda _: None).run()  # pyright: ignore[reportArgumentType]
        return {key: value.detach() for key, value in stage.parameters().items()}

    whole, parts = (trained(f"exact-{accumulate}", accumulate, 0.0) for accumulate in (1, 3))
    assert all(torch.allclose(value, parts[name], atol=1e-5) for name, value in whole.items())
    assert any(not torch.equal(value, parts[name]) for name, value in whole.items())
    one, other = (trained(f"dropout-{accumulate}", accumulate, 0.2) for accumulate in (1, 3))
    assert not all(torch.allclose(value, other[name], atol=1e-4) for name, value in one.items())
    with pytest.raises(ConfigError, match="8 samples, for 1 processes and 9 parts each; expected at least 9"):
        Trainer(Toy(), replace(config, accumulate=9), tmp_path / "many", lambda _: None)  # pyright: ignore[reportArgumentType]


def test_bfloat16_keeps_weights_and_loss_in_float32(tmp_path: Path) -> None:
    stage, outcome, _ = run(tmp_path, replace(CONFIG, precision=BFloat16(), steps=10))
    assert outcome.finished and all(value.dtype == torch.float32 for value in stage.parameters().values())


class Two(DistributedContext):
    """The first of two processes."""

    world_size = 2


def test_a_configuration_with_deepspeed_is_read_and_told_what_to_choose_instead(tmp_path: Path) -> None:
    written = to_json(CONFIG) | {"sharding": {"type": "DeepSpeed", "offload": True}}
    config = from_json(LoopConfig, written)
    assert to_json(config) == written
    # One process has everything, whatever the sharding.
    assert type(build_strategy(Toy(), config, DistributedContext())) is SingleDevice
    with pytest.raises(ConfigError, match=r"DeepSpeed .* 2 processes .*\(--sharding full\)"):
        build_strategy(Toy(), config, Two())
    with pytest.raises(ConfigError, match=r"DeepSpeed .* 2 processes .*\(--sharding full\)"):
        Planner("cpu")(Toy(), config, object.__new__(Description), tmp_path, fresh=False, distributed=Two())


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_a_launcher_told_to_lay_out_weights_in_another_way_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=r"sharding is Replicated; leave it out there, .*--sharding full"):
        build_strategy(Toy(), CONFIG, Two())


@pytest.mark.parametrize("there", [True, False])
def test_a_processor_without_bfloat16_computes_in_float32(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: there)
    with BFloat16().autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if there else torch.float32)
    assert multiplies_bfloat16("cuda:0"), "a GPU is taken to have them"
