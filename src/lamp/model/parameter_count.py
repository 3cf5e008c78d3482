"""How many parameters a configuration has, by formula: the model's own account, `LaMP.parameter_table`, must agree."""

from __future__ import annotations

from lamp.model.action_expert import ActionExpertConfig
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import AdaLNPooled, MotionExpertConfig, RepeatAndPad
from lamp.model.motion_fusion import AddFusion, ConcatFusion, FlowHead, FusionConfig, PathFusion, TokenFusion


def expected_parameters(config: LaMPConfig) -> dict[str, int]:
    """Returns the parameters of each part that `config` builds, and their total."""
    table = {}
    if config.motion:
        table["motion_expert"] = motion_expert_parameters(config.motion)
    if config.fusion and config.action:
        table["guidance"] = guidance_parameters(config.fusion, config.action, config.motion)
    if config.action:
        table["action_expert"] = action_expert_parameters(
            config.action, config.fusion.joined_width if config.fusion else 0
        )
    return table | {"total": sum(table.values())}


def motion_expert_parameters(config: MotionExpertConfig) -> int:
    """Each block: attention 4 d^2, MLP 8 d^2, and two AdaLN of 3 d^2 for each stream; biases and norms are linear in d.

    There are two streams, motion and condition, but with AdaLNPooled, which has one and a second layer for the pooled z_t.
    """
    d, values, head = config.width, config.token_values, config.width // config.heads
    pooled = isinstance(config.conditioning, AdaLNPooled)
    inputs = _linear(config.token_width, d) + _linear(values, d) + (_linear(d, d) if pooled else 0)
    if isinstance(config.conditioning, RepeatAndPad):
        inputs += config.conditioning.tokens * d
    time = _linear(config.time_channels, d) + _linear(d, d)
    ada_norm = _norm(d) + _linear(d, (3 if pooled else 6) * d)
    block = _attention(d) + 2 * _norm(head) + _mlp(d) + 2 * ada_norm
    outputs = 2 * _norm(d) + _linear(d, 2 * d) + _linear(d, values)
    return inputs + time + config.layers * block + outputs


def guidance_parameters(config: FusionConfig, action: ActionExpertConfig, motion: MotionExpertConfig | None) -> int:
    """Eq. 4: W_proj, two norms, cross-attention, and the scalar gate. Add and Concat+MLP: queries, a norm, cross-attention; then
    a map to every layer (Add). Tokens: the same, where they are pooled; then one map, and positions. A path: two maps, and
    positions. A flow head: queries, three norms, cross-attention, an MLP and a map."""
    d = action.width
    match config:
        case FlowHead():
            return config.tokens * d + 3 * _norm(d) + _attention(d) + _mlp(d) + _linear(d, config.values)
        case PathFusion():
            return _linear(config.values, d) + _linear(d, d) + config.tokens * d
        case TokenFusion():
            tokens = (motion.tokens if motion else 0) if config.tokens is None else config.tokens
            pool = 0 if config.tokens is None else tokens * config.motion_width + _attention(config.motion_width)
            return pool + _norm(config.motion_width) + _linear(config.motion_width, d) + tokens * d
        case AddFusion() | ConcatFusion():
            queries = action.chunk * config.motion_width + _norm(config.motion_width) + _attention(config.motion_width)
            return queries + (_linear(config.motion_width, action.layers * d) if isinstance(config, AddFusion) else 0)
        case _:
            z = config.token_width
            return _linear(config.motion_width, z) + 2 * _norm(z) + _attention(z) + 1


def action_expert_parameters(config: ActionExpertConfig, joined_width: int = 0) -> int:
    """Each block: attention 4 d^2, MLP 8 d^2; Joint and Prefix have the same. Concat+MLP brings two layers of its own."""
    d, times = config.width, config.time_channels * (2 if config.sees_t_1 else 1)
    inputs = _linear(config.action_dim + times + config.state_dim, d) + _linear(config.token_width, d)
    join = _linear(d + joined_width, d) + _linear(d, d) if joined_width else 0
    block = _attention(d) + _mlp(d) + 2 * _norm(d)
    return inputs + join + config.positions * d + config.layers * block + _norm(d) + _linear(d, config.action_dim)


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _norm(width: int) -> int:
    return 2 * width


def _attention(width: int) -> int:
    return 4 * _linear(width, width)


def _mlp(width: int) -> int:
    return _linear(width, 4 * width) + _linear(4 * width, width)
