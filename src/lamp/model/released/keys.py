"""Which of the release's tensors are which of ours: `to_ours` and `to_theirs` read one table in two directions.

Where the release leaves an arithmetic freedom, ours is the simpler form: what can be multiplied together is one matrix, and
the direction of time is in the weights. `inward` and `outward` of a fold are inverse to each other but for what its docstring
says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.errors import MismatchError
from lamp.model.lamp import LaMP
from lamp.model.released.sizes import ACTION_FREQUENCIES, MOTION, POLICY, Part, ReleasedSizes

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A map between groups of tensors, with its inverse."""

    inward: Callable[..., Tensors]
    """The release's tensors to ours."""
    outward: Callable[..., Tensors]
    """Ours to the release's."""


def _same(x: Tensor) -> Tensors:
    return (x,)


def _single_tensor(x: Float[Tensor, "1 n d"]) -> Tensors:
    return (x[0],)


def _single_output(x: Float[Tensor, "n d"]) -> Tensors:
    return (x[None],)


def _negative(x: Tensor) -> Tensors:
    return (-x,)


def _stack(*parts: Tensor) -> Tensors:
    return (torch.cat(parts),)


def _three(x: Tensor) -> Tensors:
    return x.chunk(3)


def _query_apart(x: Tensor) -> Tensors:
    query = len(x) // 3
    return x[:query], x[query:]


def _swap_halves(weight: Float[Tensor, "d c"]) -> Tensors:
    return (weight.roll(weight.shape[1] // 2, 1),)


SAME = Fold(inward=_same, outward=_same)
UNBATCHED = Fold(inward=_single_tensor, outward=_single_output)
"""A learned table with a batch axis of one."""
NEGATED = Fold(inward=_negative, outward=_negative)
"""The released Action Expert predicts noise minus data; Eq. 5 has data minus noise."""
STACKED = Fold(inward=_stack, outward=_three)
"""Query, key and value apart; ours are one matrix."""
QUERY_APART = Fold(inward=_query_apart, outward=_stack)
"""Query, key and value in one; ours has the query apart, since it reads another sequence."""
COSINES_FIRST = Fold(inward=_swap_halves, outward=_swap_halves)
"""The motion time's cosines come before its sines; ours the other way."""


def _condition_in(
    project: Float[Tensor, "e v"],
    text: Float[Tensor, "d e"],
    bias: Float[Tensor, " d"],
    filling: Float[Tensor, "1 c e"],
) -> Tensors:
    text = text.double()
    return text @ project.double(), bias, filling[0].double() @ text.T


def _condition_out(weight: Float[Tensor, "d v"], bias: Float[Tensor, " d"], filling: Float[Tensor, "c d"]) -> Tensors:
    return weight, torch.eye(len(weight), device=weight.device), bias, filling[None]


CONDITION = Fold(inward=_condition_in, outward=_condition_out)
"""Two linear layers in a row, the first without bias, with learned rows put in between: ours is one layer. Which part of the
product was in which layer cannot be told from it: outward, the first layer holds all, and the second is the identity."""


def noise_level(action_dim: int, channels: int, longest: float) -> Fold:
    """The Action Expert's input layer, which in the release reads cosines and sines of the noise level s = 1 - tau.

    cos(w s) = cos w cos(w tau) + sin w sin(w tau), and sin(w s) = sin w cos(w tau) - cos w sin(w tau): a rotation of each pair
    of columns by w. The release fills an odd number of channels up with a zero, whose column is dropped here and zero outward.

    Args:
        action_dim: Columns before the time's.
        channels: The time's columns in the release.
        longest: The frequencies w go from 1 down to nearly 1 / longest.
    """
    half = channels // 2

    def parts(weight: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        steps = torch.arange(half, dtype=torch.float64, device=weight.device) / half
        w = torch.exp(-math.log(longest) * steps)
        before, first, second, _, after = weight.double().split(
            [action_dim, half, half, width - 2 * half, weight.shape[1] - action_dim - width], dim=1
        )
        return before, first, second, after, w.cos(), w.sin()

    def inward(weight: Float[Tensor, "d c"]) -> Tensors:
        actions, cosines, sines, state, cos, sin = parts(weight, channels)
        return (torch.cat([actions, cosines * sin - sines * cos, cosines * cos + sines * sin, state], dim=1),)

    def outward(weight: Float[Tensor, "d c"]) -> Tensors:
        actions, sines, cosines, state, cos, sin = parts(weight, 2 * half)
        unused = actions.new_zeros(len(actions), channels - 2 * half)
        time = [sines * sin + cosines * cos, cosines * sin - sines * cos, unused]
        return (torch.cat([actions, *time, state], dim=1),)

    return Fold(inward=inward, outward=outward)


VLM = "qwen_vl_interface.model."
"""Begins the names of the VLM's own weights, which are no part of `LaMP`."""
SHOWN = 100
"""Names that an error lists before it only counts."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A group of the release's tensors and the group of ours that they make."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    fold: Fold = SAME


def pairs(sizes: ReleasedSizes, parts: frozenset[Part]) -> Iterator[Pair]:
    """Lists all groups of a model of these sizes and parts."""
    yield from _motion(sizes, "motion_head.decoder.", "motion_expert.")
    if "action_model" in parts:
        yield from _guidance("motion_guidance.", "guidance.")
        yield from _action(sizes, "action_model.", "action_expert.")


def _layer(theirs: str, ours: str, *, weight: Fold = SAME, bias: Fold = SAME) -> Iterator[Pair]:
    yield Pair(theirs=(f"{theirs}.weight",), ours=(f"{ours}.weight",), fold=weight)
    yield Pair(theirs=(f"{theirs}.bias",), ours=(f"{ours}.bias",), fold=bias)


def _motion(sizes: ReleasedSizes, theirs: str, ours: str) -> Iterator[Pair]:
    network = f"{theirs}cogvideox."
    text = f"{network}patch_embed.text_proj"
    yield Pair(
        theirs=("motion_head.vlm_proj.weight", f"{text}.weight", f"{text}.bias", f"{theirs}learnable_padding_tokens"),
        ours=(f"{ours}condition_in.weight", f"{ours}condition_in.bias", f"{ours}filling"),
        fold=CONDITION,
    )
    yield from _layer(f"{network}patch_embed.proj", f"{ours}motion_in")
    yield from _layer(f"{network}time_embedding.linear_1", f"{ours}time.first", weight=COSINES_FIRST)
    yield from _layer(f"{network}time_embedding.linear_2", f"{ours}time.second")
    for index in range(sizes.m_layers):
        yield from _motion_block(f"{network}transformer_blocks.{index}.", f"{ours}blocks.{index}.")
    yield from _layer(f"{network}norm_final", f"{ours}norm")
    yield from _layer(f"{network}norm_out.norm", f"{ours}norm_out")
    yield from _layer(f"{network}norm_out.linear", f"{ours}modulate_out")
    yield from _layer(f"{network}proj_out", f"{ours}velocity_out")


def _motion_block(theirs: str, ours: str) -> Iterator[Pair]:
    for norm, name in (("norm1", "norm_attention"), ("norm2", "norm_mlp")):
        yield from _layer(f"{theirs}{norm}.norm", f"{ours}{name}.norm")
        yield from _layer(f"{theirs}{norm}.linear", f"{ours}{name}.modulate")
    for kind in ("weight", "bias"):
        apart = tuple(f"{theirs}attn1.to_{name}.{kind}" for name in ("q", "k", "v"))
        yield Pair(theirs=apart, ours=(f"{ours}query_key_value.{kind}",), fold=STACKED)
    yield from _layer(f"{theirs}attn1.norm_q", f"{ours}norm_query")
    yield from _layer(f"{theirs}attn1.norm_k", f"{ours}norm_key")
    yield from _layer(f"{theirs}attn1.to_out.0", f"{ours}out")
    yield from _layer(f"{theirs}ff.net.0.proj", f"{ours}mlp.up")
    yield from _layer(f"{theirs}ff.net.2", f"{ours}mlp.down")


def _guidance(theirs: str, ours: str) -> Iterator[Pair]:
    yield from _layer(f"{theirs}motion_proj", f"{ours}project")
    yield from _layer(f"{theirs}norm_motion", f"{ours}norm_motion")
    yield from _layer(f"{theirs}norm_vl", f"{ours}norm_z")
    attention = f"{ours}cross_attention"
    for kind in ("weight", "bias"):
        apart = (f"{attention}.query.{kind}", f"{attention}.key_value.{kind}")
        yield Pair(theirs=(f"{theirs}cross_attn.in_proj_{kind}",), ours=apart, fold=QUERY_APART)
    yield from _layer(f"{theirs}cross_attn.out_proj", f"{attention}.out")
    yield Pair(theirs=(f"{theirs}gate",), ours=(f"{ours}g",))


def _action(sizes: ReleasedSizes, theirs: str, ours: str) -> Iterator[Pair]:
    slowest, fastest = ACTION_FREQUENCIES
    reversed_time = noise_level(sizes.A, sizes.dim_time, fastest / slowest)
    yield from _layer(f"{theirs}action_encoder", f"{ours}action_in", weight=reversed_time)
    yield from _layer(f"{theirs}vlm_proj", f"{ours}context_in")
    yield Pair(theirs=(f"{theirs}pos_emb",), ours=(f"{ours}positions",), fold=UNBATCHED)
    names = {
        "norm1": "norm_attention",
        "attn.qkv": "query_key_value",
        "attn.proj": "out",
        "norm2": "norm_mlp",
        "mlp.fc1": "mlp.up",
        "mlp.fc2": "mlp.down",
    }
    for index in range(sizes.act_depth):
        for their_name, our_name in names.items():
            yield from _layer(f"{theirs}blocks.{index}.{their_name}", f"{ours}blocks.{index}.{our_name}")
    yield from _layer(f"{theirs}norm", f"{ours}norm")
    yield from _layer(f"{theirs}action_decoder", f"{ours}velocity_out", weight=NEGATED, bias=NEGATED)


def parts_of(names: Iterable[str], where: str) -> frozenset[Part]:
    """Which parts of the model a file holds, by the names of its tensors.

    Raises:
        MismatchError: It holds neither the Motion Expert alone nor a whole policy.
    """
    present = {name.split(".", 1)[0] for name in names} & POLICY
    for whole in (POLICY, MOTION):
        if present == whole:
            return whole
    missing = ", ".join(sorted((POLICY if present else MOTION) - present))
    raise MismatchError(
        f"{where} has no tensors of {missing}; it has {', '.join(sorted(present)) or 'none of a released model'}. Expected "
        f"{', '.join(sorted(POLICY))} (a policy), or motion_head alone (the Motion Expert)."
    )


def to_ours(theirs: Mapping[str, Tensor], sizes: ReleasedSizes, where: str) -> dict[str, Tensor]:
    """Turns the release's tensors into the weights of our model, in float32; the VLM's are left out.

    Raises:
        MismatchError: Tensors are missing, unknown or of another shape; all are listed.
    """
    given = {name: value for name, value in theirs.items() if not name.startswith(VLM)}
    parts = parts_of(given, where)
    check_shapes({name: tuple(value.shape) for name, value in given.items()}, sizes, parts, where)
    weights: dict[str, Tensor] = {}
    for pair in pairs(sizes, parts):
        folded = pair.fold.inward(*(given[name] for name in pair.theirs))
        weights |= {name: value.float() for name, value in zip(pair.ours, folded, strict=True)}
    return weights


def to_theirs(ours: Mapping[str, Tensor], sizes: ReleasedSizes, parts: frozenset[Part]) -> dict[str, Tensor]:
    """The inverse of `to_ours`, up to what the folds cannot tell."""
    tensors: dict[str, Tensor] = {}
    for pair in pairs(sizes, parts):
        folded = pair.fold.outward(*(ours[name] for name in pair.ours))
        tensors |= {name: value.to(torch.float32) for name, value in zip(pair.theirs, folded, strict=True)}
    return tensors


def released_shapes(sizes: ReleasedSizes, parts: frozenset[Part]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors of a released model, without making any."""
    with torch.device("meta"):
        weights = LaMP(sizes.config(parts)).state_dict()
    return {name: tuple(value.shape) for name, value in to_theirs(weights, sizes, parts).items()}


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], sizes: ReleasedSizes, parts: frozenset[Part], where: str
) -> None:
    """
    Raises:
        MismatchError: The names or shapes are not those of a released model of these sizes; all are listed.
    """
    for size, stem in (
        ("m_layers", "motion_head.decoder.cogvideox.transformer_blocks."),
        ("act_depth", "action_model.blocks."),
    ):
        depth = len({name.removeprefix(stem).split(".")[0] for name in shapes if name.startswith(stem)})
        stated = getattr(sizes, size)
        # Said first, and apart: every layer too few or too many is a dozen names.
        if stem.split(".")[0] in parts and depth != stated:
            raise MismatchError(f"{where} has {depth} layers {stem}*; its sizes say {size} = {stated}.")
    wanted = released_shapes(sizes, parts)
    problems = [
        f"{problem}: {_list_names(names)}"
        for problem, names in (
            ("missing", wanted.keys() - shapes.keys()),
            ("unknown", shapes.keys() - wanted.keys()),
            ("of another shape", _shape_differences(shapes, wanted)),
        )
        if names
    ]
    if problems:
        raise MismatchError(
            f"{where} is not a released model of the sizes it should have. Tensors {'; '.join(problems)}."
        )


def _shape_differences(shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    common = shapes.keys() & wanted.keys()
    return [f"{name} {shapes[name]}, expected {wanted[name]}" for name in common if shapes[name] != wanted[name]]


def _list_names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
