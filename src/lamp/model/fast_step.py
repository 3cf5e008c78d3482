"""The whole step of a policy on Qwen3-VL, from pixels and words to actions: on a GPU one CUDA graph, one launch a chunk."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.model.fast import CudaGraphs, FastActor, pad_batch
from lamp.model.lamp import required
from lamp.model.qwen3_vl import QwenInputs
from lamp.model.qwen_fast import LENGTH_STEP, FastQwen, by_observation, pad_groups
from lamp.types import LeftPadding, Padding, placed


class FastStep:
    """`FastQwen`, then `FastActor`, without the host in between.

    Args:
        padding: On which side the experts see padding.
        length: Tokens of every padded sequence; None: as many as the longest of a batch has, or a few more.
    """

    def __init__(self, qwen: FastQwen, actor: FastActor, *, padding: Padding, length: int | None) -> None:
        self._qwen, self._actor, self._padding, self._length = qwen, actor, padding, length
        self._graphs = CudaGraphs()

    @torch.inference_mode()
    def act(
        self,
        inputs: QwenInputs,
        state: Float[Tensor, "b s"],
        *,
        motion_noise: Float[Tensor, "b k t 3"] | None,
        action_noise: Float[Tensor, "b h a"],
    ) -> Float[Tensor, "b h a"]:
        """Returns a normalised action chunk for what `Qwen3VLBackbone.prepare` gave."""
        length = self._length or self._padded_length(max(inputs.lengths))
        whole = min(inputs.lengths) == length
        static, model, padding = self._qwen.static, self._actor.model, self._padding

        def step(
            ids: Tensor, positions: Tensor, patches: Tensor, real: Tensor,
            state: Tensor, motion_noise: Tensor | None, action_noise: Tensor,
        ) -> Tensor:  # fmt: skip
            encoded = placed(static(ids, positions, patches), real, padding, length, whole=whole)
            return model.act(encoded, state, motion_noise=motion_noise, action_noise=action_noise)

        rest = {"real": inputs.real, "state": state, "motion_noise": motion_noise, "action_noise": action_noise}
        given = pad_groups(by_observation(inputs.ids, inputs.positions, inputs.patches), length)
        given |= {name: tensor if tensor is None else pad_batch(tensor) for name, tensor in rest.items()}
        with torch.autocast(self._qwen.device.type, enabled=False):
            return self._graphs.run(step, given, key=(length, whole))[: len(state)]

    def _padded_length(self, longest: int) -> int:
        """Few different lengths, where more padding on the right changes nothing: within the Action Expert's positions."""
        action = required(self._actor.model.config.action, "Action Expert")
        room = longest if isinstance(self._padding, LeftPadding) else longest + -longest % LENGTH_STEP
        return max(longest, min(room, action.positions - action.chunk))
