"""How many parameters a configuration has, by formula: the model's own account, `LaMP.parameter_table`, must agree."""

from __future__ import annotations

from lamp.model.action_expert import ActionExpertConfig
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig, RepeatAndPad


def expected_parameters(config: LaMPConfig) -> dict[str, int]:
    """Returns the parameters of each part that `config` builds, and their total."""
    table = {}
    if config.motion:
        table["motion_expert"] = motion_expert_parameters(config.motion)
    if config.guidance and config.motion and config.action:
        table["guidance"] = guidance_parameters(config.guidance)
    if config.action:
        table["action_expert"] = action_expert_parameters(config.action)
    return table | {"total": sum(table.values())}


def motion_expert_parameters(config: MotionExpertConfig) -> int:
    """Each block: attention 4 d^2, MLP 8 d^2, and two AdaLN of 6 d^2 each; biases and norms are linear in d."""
    d, values, head = config.width, config.token_values, config.width // config.heads
    inputs = _linear(config.token_width, d) + _linear(values, d)
    if isinstance(config.conditioning, RepeatAndPad):
        inputs += config.conditioning.tokens * d
    time = _linear(config.time_channels, d) + _linear(d, d)
    ada_norm = _norm(d) + _linear(d, 6 * d)
    block = _attention(d) + 2 * _norm(head) + _mlp(d) + 2 * ada_norm
    outputs = 2 * _norm(d) + _linear(d, 2 * d) + _linear(d, values)
    return inputs + time + config.layers * block + outputs


def guidance_parameters(config: GuidanceConfig) -> int:
    """Eq. 4: W_proj, two norms, cross-attention, and the scalar gate."""
    d = config.token_width
    return _linear(config.motion_width, d) + 2 * _norm(d) + _attention(d) + 1


def action_expert_parameters(config: ActionExpertConfig) -> int:
    """Each block: attention 4 d^2, MLP 8 d^2; Joint and Prefix have the same."""
    d = config.width
    inputs = _linear(config.action_dim + config.time_channels + config.state_dim, d) + _linear(config.token_width, d)
    block = _attention(d) + _mlp(d) + 2 * _norm(d)
    return inputs + config.positions * d + config.layers * block + _norm(d) + _linear(d, config.action_dim)


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _norm(width: int) -> int:
    return 2 * width


def _attention(width: int) -> int:
    return 4 * _linear(width, width)


def _mlp(width: int) -> int:
    return _linear(width, 4 * width) + _linear(4 * width, width)
