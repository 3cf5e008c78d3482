"""LaMP under LeRobot's interface: Stage 2's loss, and actions one at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from lamp.data.observation_encoder import ObservationEncoder, check_instructions
from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import gaussian
from lamp.model.lamp import LaMP
from lamp.seeding import generator_at
from lamp.train.backbones import find_backbone, load_backbone
from lamp.types import Encoded
from lerobot_policy_lamp.building import STATE, Plan, load_motion, observations_of, state_of, training_batch
from lerobot_policy_lamp.configuration_lamp import LampConfig


class LampPolicy(PreTrainedPolicy):
    """A LaMP policy that LeRobot trains, saves and runs.

    The frozen backbone is no part of its weights: it is loaded beside them, and has to be the one it was trained with.
    """

    config_class = LampConfig
    name = "lamp"
    losses_taken: Tensor
    """Training batches so far; with the global seed it determines the next noise."""

    def __init__(self, config: LampConfig, **_: Any) -> None:
        """
        Args:
            config: Its `plan` is filled in where it is empty, so that it is saved with the policy.

        Raises:
            ConfigError: The configuration does not fit the features.
            DataError: There is no such motion checkpoint, or it is damaged.
            MismatchError: The backbone is not the one that the policy was trained with.
        """
        super().__init__(config)
        plan = config.planned()
        backbone = load_backbone(find_backbone(plan.backbone))
        if plan.backbone_key not in (None, backbone.key):
            raise MismatchError(
                f"the policy was trained with the backbone {plan.backbone_key}, here it is {backbone.key}: expected the same "
                "weights and settings."
            )
        # No submodule, since the encoder is a plain object: not saved, not trained, not wrapped.
        self.encoder = ObservationEncoder(backbone)
        self._instructions: set[str] = set()
        self.plan: Plan = replace(plan, backbone_key=backbone.key)
        self.model = LaMP(plan.model)
        if config.motion is not None and not config.plan:
            load_motion(self.model, config.motion, backbone.key)
        config.plan = self.plan.to_text()
        config.keep_features({STATE, *(camera.key for camera in plan.cameras)})
        self.settings = config.settings
        if self.model.motion_expert is not None:
            self.model.motion_expert.requires_grad_(False)
        # Saved with the weights: LeRobot's own random state is not where it was when a training is taken up again.
        self.register_buffer("losses_taken", torch.zeros((), dtype=torch.int64))
        self.reset()

    def train(self, mode: bool = True) -> LampPolicy:
        """The frozen Motion Expert stays in evaluation mode."""
        super().train(mode)
        if self.model.motion_expert is not None:
            self.model.motion_expert.eval()
        return self

    def get_optim_params(self) -> list[nn.Parameter]:
        """What Stage 2 trains: guidance and Action Expert."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Forgets the actions that are left of the last chunk."""
        self._queue: deque[Tensor] = deque()

    def forward(self, batch: Mapping[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The loss of Stage 2 (Eq. 5) on a normalised batch, and what is worth logging.

        Raises:
            ConfigError: Another reduction is requested.
            MismatchError: The batch lacks what the policy was made for.
        """
        if reduction != "mean":
            raise ConfigError(
                f"reduction {reduction!r} is requested; LaMP has the mean only: train without sample weights."
            )
        if self.training:
            self.losses_taken += 1
            # LeRobot gives all processes the same seed.
            generator = generator_at(torch.initial_seed(), "lerobot", _rank(), int(self.losses_taken))
        else:
            generator = self._generator()
        # Measured on held-out samples, the policy sees what it sees where it acts.
        settings = self.settings
        if not self.training:
            settings = replace(settings, state_noise=0.0, token_dropout=0.0, prior_dropout=0.0)
        ready = training_batch(batch, self._encode(batch), settings, self._state_width, generator)
        loss = self.model.action_loss(ready, generator, self.settings.noise_draws)
        metrics = {f"loss_{index}": float(value) for index, value in enumerate(loss.per_dim)}
        return loss.total, metrics | ({} if self.model.gate is None else {"gate": self.model.gate})

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """A chunk of normalised actions (Algorithm 2): (batch, chunk, action)."""
        self.eval()
        encoded, generator = self._encode(batch), self._generator()
        size, device = len(encoded.mask), encoded.mask.device
        motion_shape, action_shape = self.model.motion_shape, self.model.action_shape
        assert action_shape is not None
        drawn = None if motion_shape is None else gaussian((size, *motion_shape), generator, device)
        return self.model.act(
            encoded,
            state_of(batch, self._state_width, size).to(device),
            motion_noise=drawn,
            action_noise=gaussian((size, *action_shape), generator, device) if noise is None else noise.to(device),
        )

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], **more: Any) -> Tensor:
        """The next normalised action; a new chunk is made where the last one is used up."""
        self.eval()
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **more)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    @property
    def _state_width(self) -> int:
        assert self.plan.model.action is not None
        return self.plan.model.action.state_dim

    def _encode(self, batch: Mapping[str, Any]) -> Encoded:
        device, backbone = next(self.parameters()).device, self.encoder.backbone
        if isinstance(backbone, nn.Module) and _device_of(backbone) != device:
            backbone.to(device)
        observations = observations_of(batch, self.plan.cameras, self.config.instruction)
        if self.training and not self._instructions.issuperset(observations.instructions):
            self._instructions.update(observations.instructions)
            check_instructions(backbone, sorted(self._instructions), "the dataset's tasks")
        with torch.no_grad():
            return self.encoder.encode(observations.to(device)).to(device)

    def _generator(self) -> torch.Generator:
        """A source that follows the global one."""
        return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def _device_of(module: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)


def _rank() -> int:
    """This process's number among those that train together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if together else 0
