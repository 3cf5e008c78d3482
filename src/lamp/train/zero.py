"""DeepSpeed's ZeRO-2 through Accelerate: each process keeps a part of the gradients and of the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.draws import Source
from lamp.errors import MissingDependencyError
from lamp.train.configs import LoopConfig
from lamp.train.gradients import GradientNorms
from lamp.train.placement import Alone, AnyBatch, Objective, StepLoss, Trained
from lamp.train.sharding import DeepSpeed

INSTALL = "pip install 'lamp-vla[deepspeed]'"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight, besides the number of its steps."""


def settings(loop: LoopConfig, *, processes: int, samples: int) -> dict[str, Any]:
    """DeepSpeed's own configuration. Precision stays with our autocast: weights, gradients and moments are float32.

    Args:
        loop: The training's settings.
        processes: How many there are.
        samples: Of a step, over all processes. DeepSpeed only reports this: we scale losses and count parts ourselves.
    """
    assert isinstance(loop.sharding, DeepSpeed)
    return {
        "train_micro_batch_size_per_gpu": max(1, samples // processes),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": loop.clip,
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {"device": "cpu" if loop.sharding.offload else "none"},
        },
        "zero_force_ds_cpu_optimizer": False,
    }


class ZeroTwo(Alone):
    """A step of DeepSpeed's engine. Its state is kept as any other run's, so that any number of processes goes on from it.

    Deviation: weights that have no gradient in a step are moved by their moments all the same, which elsewhere they are not.
    """

    def __init__(self, stage: Trained, loop: LoopConfig, *, processes: int, samples: int) -> None:
        """
        Raises:
            MissingDependencyError: DeepSpeed is not installed.
        """
        from accelerate import Accelerator, DeepSpeedPlugin
        from accelerate.utils import is_deepspeed_available

        if not is_deepspeed_available():
            raise MissingDependencyError(f"sharding DeepSpeed needs package 'deepspeed'; install it: {INSTALL}")
        super().__init__(stage, loop.optimiser)
        plugin = DeepSpeedPlugin(hf_ds_config=settings(loop, processes=processes, samples=samples))
        accelerator = Accelerator(mixed_precision="no", deepspeed_plugin=plugin)
        self._engine: Any = accelerator.prepare(Objective(stage), self.optimiser)[0]

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        yield

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss:
        total, parts = self._engine(batch, source)
        return StepLoss(total=total, parts=parts)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        self._engine.backward(loss)

    @property
    def modules(self) -> tuple[str, ...]:
        """None: DeepSpeed tells the norm of all gradients together."""
        return ()

    def step(self, clip: float) -> GradientNorms:
        # Clips as its configuration says, which has the same number; moves the weights and forgets the gradients.
        self._engine.step()
        total = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)
        return GradientNorms(total=total, by_module=total.new_zeros(0))

    def optimiser_tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        steps = [state["step"] for state in self._inner.state.values() if "step" in state]
        if not steps:
            return {}
        found = {f"{name}:step": torch.as_tensor(float(steps[0])) for name in self.parameters}
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                found[f"{name}:{moment}"] = safe_get_full_optimizer_state(parameter, moment)
        return found

    def restore(self, weights: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state  # pyright: ignore[reportMissingImports]

        self._make_state(
            max((float(value) for name, value in optimiser.items() if name.endswith(":step")), default=0.0)
        )
        for name, parameter in self.parameters.items():
            value = weights[name].to(parameter.device)
            parameter.detach().copy_(value)
            safe_set_full_fp32_param(parameter, value)
            for moment in MOMENTS:
                if (kept := optimiser.get(f"{name}:{moment}")) is not None:
                    safe_set_full_optimizer_state(parameter, kept.to(parameter.device), moment)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The optimizer that DeepSpeed steps, over flat tensors of its own."""
        return self._engine.optimizer.optimizer

    def _make_state(self, steps: float) -> None:
        """Makes the state that DeepSpeed makes at its first step, which is too late to put one back."""
        zero = self._engine.optimizer
        for flat in zero.single_partition_of_fp32_groups:
            moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            self._inner.state[flat] = {"step": torch.tensor(steps), **moments}
        zero._lazy_init_hp_params_optimizer_state()
