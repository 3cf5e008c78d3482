"""A model of somebody else's: its licence, where its network and weights come from, and how they are read.

None is needed and none is a default. Each says its licence before it is first used; a package or weights that are missing are
named with the command that gets them. Weights are read as safetensors or with `weights_only`: nothing in them is ever executed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from lamp.errors import ConfigError, DataError, MismatchError, MissingDependencyError
from lamp.hub import Fetch, HubId, fetch

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What a model may be used for."""

    text: str
    commercial: bool = True


@dataclass(frozen=True, kw_only=True)
class LearnedModel:
    """A model of somebody else's: where its network and its weights come from."""

    name: str
    """As it is called on the command line."""
    title: str
    licence: Licence
    install: str
    """The command that installs what it is imported from."""
    weights: str
    """The weights that are used where none are named: a hub id, or where they are found."""
    get: str
    """The command that gets them."""
    files: tuple[str, ...] = ("*.safetensors",)
    """Names of weight files in a folder or on the hub, the best first."""
    load: Callable[[Path], Any]
    """Makes the network and reads its weights."""
    run: Callable[..., Any]
    """Estimates; what it takes and gives depends on the kind of model."""
    visible: float = 0.5
    """Of a tracker: a point of a higher probability is seen."""
    both: bool = True
    """Of a tracker: that probability is of being seen and of the place being right, else of being seen alone."""
    instead_of_gpu: tuple[str, ...] = ()
    """Of one whose own code moves images to a GPU, whatever it is told: the models of its kind that do not. Empty: it computes
    anywhere."""

    @property
    def notice(self) -> str:
        """Its licence, in one line."""
        use = "" if self.licence.commercial else ": NOT for commercial use, neither what is made with it"
        return f"{self.title} is used under {self.licence.text}{use}"

    def find(self, weights: str | None) -> Path:
        """The file or folder of its weights, copied from the hub where it is not on this machine.

        Raises:
            DataError: There are none, or several.
        """
        named = weights or self.weights
        command = f"get them with: {self.get}, and name the file or folder"
        path = Path(named).expanduser()
        if not path.exists():
            hub = HubId.parse(named)
            if hub is None:
                raise DataError(f"no weights of {self.title} at {named}; {command}")
            instead = f"Where there is a hub, {command}."
            path = fetch(hub, Fetch(patterns=(*self.files, "*.json"), instead=instead, stored_first=True))
        if path.is_file():
            if path.suffix not in WEIGHT_FILES:
                raise DataError(f"{path} are no weights of {self.title}; expected a file {', '.join(WEIGHT_FILES)}")
            return path
        for pattern in self.files:
            found = sorted(path.glob(pattern))
            if len(found) == 1 and found[0].is_file():
                return found[0]
            if found:
                names = ", ".join(file.name for file in found[:5])
                raise DataError(f"{path} holds several weights of {self.title} ({names}); name the file that is meant")
        raise DataError(f"{path} holds no weights of {self.title}; expected {' or '.join(self.files)}; {command}")

    def imported(self, module: str) -> Any:
        """A module of its package.

        Raises:
            MissingDependencyError: It, or something that it needs, is not installed.
        """
        try:
            return importlib.import_module(module)
        except (ImportError, RuntimeError) as error:  # torchvision for another torch raises RuntimeError
            raise MissingDependencyError(
                f"{self.title} cannot be imported ({error}); install it: {self.install}"
            ) from None


def read_weights(path: Path, title: str) -> dict[str, Any]:
    """What a weight file holds: tensors by name, under `model` or `state_dict` or by themselves.

    Raises:
        DataError: It is corrupt, or holds something else than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cannot read {path} as weights of {title} ({first}); expected safetensors, or a PyTorch file of tensors alone, "
            "which nothing is executed of"
        ) from None


def fill(network: torch.nn.Module, path: Path, title: str, prefix: str = "") -> Any:
    """A network with the weights of a file, ready to estimate.

    Args:
        prefix: Of the names in the file, which the network's lack; names without it are taken as they are.

    Raises:
        MismatchError: They are weights of another network.
    """
    content = read_weights(path, title)
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {name.removeprefix(prefix): value for name, value in content.items()}
    wanted = network.state_dict()
    absent = [name for name in wanted if name not in state]
    strange = [name for name in state if name not in wanted]
    other = [name for name in wanted if name in state and getattr(state[name], "shape", None) != wanted[name].shape]
    if absent or strange or other:
        shown = (*(f"{name} is missing" for name in absent[:1]), *(f"{name} is unknown" for name in strange[:1]))
        shown = (*shown, *(f"{name} has another shape" for name in other[:1]))
        raise MismatchError(
            f"{path} holds other weights than those of {title} ({'; '.join(shown)}; {len(absent) + len(strange) + len(other)} "
            f"differences in {len(wanted)}); expected those of {title}"
        )
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


@lru_cache(maxsize=4)
def loaded(model: LearnedModel, weights: str | None, device: str) -> Any:
    """A network with its weights on a device, once a process.

    Raises:
        LampError: Its package or weights are missing or do not fit, or there is no such device.
    """
    if model.instead_of_gpu and not device.startswith("cuda"):
        raise ConfigError(
            f"{model.title} computes on a GPU alone, and the device is {device!r}; expected --device cuda on a machine with "
            f"one, or another model: {', '.join(model.instead_of_gpu)}"
        )
    with torch.no_grad():
        network = model.load(model.find(weights))
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{model.title} cannot be put on device {device!r} ({str(error).splitlines()[0]}); expected cpu, or cuda:N of a GPU "
            "that is there"
        ) from None


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resized(rgb: UInt8[np.ndarray, "t h w 3"], size: tuple[int, int], device: Any, *, corners: bool = False) -> Tensor:
    """Images as (t, 3, h, w) floats of 0 to 255 at another width and height."""
    video = torch.from_numpy(np.ascontiguousarray(rgb)).to(device).permute(0, 3, 1, 2).float()
    if video.shape[2:] == (size[1], size[0]):
        return video
    return functional.interpolate(video, (size[1], size[0]), mode="bilinear", align_corners=corners)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(model.parameters()).device
