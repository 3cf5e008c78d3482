"""Golden vectors of a released model: inputs, weights and outputs in one file, and our arithmetic beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.errors import DataError
from lamp.flow_matching import euler
from lamp.model.lamp import LaMP
from lamp.model.released.artifact import load, opened, sizes_from
from lamp.model.released.sizes import ReleasedSizes
from lamp.types import Encoded

GOLDEN = "golden."
TOLERANCE = 1e-4
INPUTS = ("vl_features", "state", "motion_noise", "action_noise")
OUTPUTS = (
    "motion_velocity_t0",
    "motion_hidden_t0",
    "motion_latents_tau",
    "motion_hidden_tau",
    "guided",
    "action_velocity_t06",
    "actions",
)
STEPS = 10
NOISE_LEVEL = 0.6
"""Of `action_velocity_t06`."""


def check(path: Path) -> dict[str, float]:
    """Computes all golden outputs from the golden inputs, and returns the largest absolute error of each.

    Raises:
        LampError: The file is missing or damaged, or is not laid out like the golden file.
    """
    sizes = sizes_from(path)
    golden = read_golden(path, sizes)
    ours = outputs(load(path, sizes), sizes, golden)
    for name, value in ours.items():
        if golden[name].shape != value.shape:
            expected, actual = tuple(value.shape), tuple(golden[name].shape)
            raise DataError(f"{path}: {GOLDEN}{name} has shape {actual}; the file's sizes make it {expected}.")
    return {name: float((value - golden[name]).abs().max()) for name, value in ours.items()}


def read_golden(path: Path, sizes: ReleasedSizes) -> dict[str, Float[Tensor, "..."]]:
    """Reads the golden tensors by their names without the prefix.

    Raises:
        DataError: One is missing, unknown or an input of another shape than the sizes make it.
    """
    with opened(path) as file:
        vectors = {name.removeprefix(GOLDEN): file.get_tensor(name) for name in file.keys() if name.startswith(GOLDEN)}  # noqa: SIM118
    wanted = {*INPUTS, *OUTPUTS}
    missing, other = sorted(wanted - vectors.keys()), sorted(vectors.keys() - wanted)
    if missing or other:
        problem = f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(other) or 'none'}"
        raise DataError(f"{path} is not laid out like the golden file. Tensors {GOLDEN}*, {problem}.")
    b, n = vectors["vl_features"].shape[:2] if vectors["vl_features"].ndim == 3 else (-1, -1)
    shapes = {
        "vl_features": (b, n, sizes.vl),
        "state": (b, sizes.S),
        "motion_noise": (b, sizes.T // sizes.pack, 3 * sizes.pack, sizes.grid, sizes.grid),
        "action_noise": (b, sizes.H, sizes.A),
    }
    for name, shape in shapes.items():
        if tuple(vectors[name].shape) != shape or b < 1:
            raise DataError(
                f"{path}: {GOLDEN}{name} has shape {tuple(vectors[name].shape)}; its sizes make it {shape}."
            )
    return {name: value.float() for name, value in vectors.items()}


@torch.no_grad()
def outputs(model: LaMP, sizes: ReleasedSizes, golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """Computes what the release's arithmetic gives for the golden inputs, each from those inputs alone.

    Raises:
        DataError: The model lacks a part.
    """
    motion, action = model.motion_expert, model.action_expert
    if motion is None or action is None:
        raise DataError("golden vectors need a whole policy; this file holds the Motion Expert alone.")
    z, state = golden["vl_features"], golden["state"]
    encoded = Encoded(tokens=z, mask=torch.ones(z.shape[:2], dtype=torch.bool))
    noise, action_noise = unpacked(golden["motion_noise"], sizes.pack), golden["action_noise"]
    start = torch.zeros(len(z))
    one_step = euler(lambda m, tau: motion(m, tau, encoded), noise, STEPS, stop_after=1)
    hidden = model.motion_hidden(encoded, noise)
    guided = model.guide(encoded, hidden)
    tau = torch.full((len(z), 1), 1 - NOISE_LEVEL)
    velocity = action(action_noise[:, None], tau, state, action.context(guided))[:, 0]
    return {
        "motion_velocity_t0": packed(motion(noise, start, encoded), sizes),
        "motion_hidden_t0": motion.hidden(noise, start, encoded),
        "motion_latents_tau": packed(one_step, sizes),
        "motion_hidden_tau": hidden,
        "guided": guided.tokens,
        # The release's network predicts noise minus data.
        "action_velocity_t06": -velocity,
        "actions": model.act(encoded, state, motion_noise=noise, action_noise=action_noise),
    }


def unpacked(motion: Float[Tensor, "b f c rows columns"], pack: int) -> Float[Tensor, "b k t 3"]:
    """Scene flow from the release's layout, where channel (axis, frame of the packed ones) holds a frame's axis."""
    x = motion.unflatten(2, (3, pack))
    return x.permute(0, 4, 5, 1, 3, 2).flatten(3, 4).flatten(1, 2)


def packed(motion: Float[Tensor, "b k t 3"], sizes: ReleasedSizes) -> Float[Tensor, "b f c rows columns"]:
    """The inverse of `unpacked`."""
    x = motion.unflatten(2, (-1, sizes.pack)).unflatten(1, (sizes.grid, sizes.grid))
    return x.permute(0, 3, 5, 4, 1, 2).flatten(2, 3)
