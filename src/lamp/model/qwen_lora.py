"""LoRA on the language model of Qwen3-VL (package peft): small matrices that are trained beside its frozen weights.

An adapter is kept as peft keeps it, so that other tools can put it on the published model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lamp.errors import ConfigError, MismatchError, MissingDependencyError
from lamp.json_files import write_json

LAYERS = r"language_model\.layers\.\d+\."
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER = "default"
"""What peft calls the only adapter of a model; the name is part of its weights' names, but not in files."""
IN_FILES = "base_model.model.model."
"""What stands before a weight's name in a file: the place of our model in the published one."""
DESCRIPTION = "adapter_config.json"
INSTALL = "pip install 'lamp-vla[lora]'"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Adapters of the language model, trained in Stage 2. The tokens then change from step to step, so none can be cached."""

    rank: int = 16
    alpha: float = 32.0
    """The adapters' product is scaled by alpha / rank."""
    dropout: float = 0.05
    """Share of an adapter's input that is dropped in training."""
    projections: tuple[str, ...] = PROJECTIONS
    """Which linear maps of each layer have an adapter."""
    prior_reads_adapted: bool = False
    """Whether the frozen Motion Expert reads tokens with the adapters, which it never saw in Stage 1, as in runs from before
    there was a choice. False: those of the model without them, which then runs twice."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(
                f"LoRA: rank {self.rank}, alpha {self.alpha} given; expected positive numbers (16, 32.0)."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"LoRA: dropout {self.dropout} given; expected a share in [0, 1), such as 0.05.")
        unknown = [name for name in self.projections if name not in PROJECTIONS]
        if unknown or not self.projections:
            raise ConfigError(
                f"LoRA: projections {list(self.projections)} given; expected some of {list(PROJECTIONS)}."
            )


def adapt(vlm: Any, lora: LoRA) -> None:
    """Puts fresh adapters into a model, which change nothing yet. They stay in float32, and are the only trained weights."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError(f"LoRA needs package {error.name!r}; install it: {INSTALL}") from None
    vlm.requires_grad_(False)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=rf"{LAYERS}.*\.({'|'.join(lora.projections)})",
    )
    inject_adapter_in_model(config, vlm, ADAPTER)
    for parameter in adapters(vlm).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def adapters(vlm: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' weights, by their names in the model."""
    return {name: parameter for name, parameter in vlm.named_parameters() if ".lora_" in name}


@contextmanager
def without_adapters(vlm: nn.Module) -> Iterator[None]:
    """Lets the model compute as if it had no adapters. Their gradients are left alone, unlike by peft's own switch."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in vlm.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def unadapted(vlm: nn.Module) -> nn.Module:
    """A copy without the adapters, before they are merged; all but the weights that merging changes are shared."""
    from peft.tuners.lora import LoraLayer

    changed = {
        id(weight)
        for module in vlm.modules()
        if isinstance(module, LoraLayer)
        for weight in module.get_base_layer().parameters()
    }
    tensors = (*vlm.parameters(), *vlm.buffers())
    twin = copy.deepcopy(vlm, {id(tensor): tensor for tensor in tensors if id(tensor) not in changed})
    for name, module in list(twin.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, module.get_base_layer())
    return twin


def recompute_layers(vlm: Any) -> None:
    """Makes the language model's layers compute their activations twice, see `lamp.model.lamp`."""
    for layer in vlm.language_model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def merge(vlm: Any) -> None:
    """Adds the adapters to the weights they belong to, for good: the model is then a plain one again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(vlm.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(vlm.get_submodule(parent), child, module.get_base_layer())


def to_files(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names an adapter's weights as peft does in files."""
    return {IN_FILES + name.replace(f".{ADAPTER}.", "."): value for name, value in weights.items()}


def from_files(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_files`."""
    weights_by_name = {}
    for name, value in weights.items():
        path, _, kind = name.removeprefix(IN_FILES).rpartition(".")
        weights_by_name[f"{path}.{ADAPTER}.{kind}"] = value
    return weights_by_name


@torch.no_grad()
def fill(vlm: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies an adapter's weights into a model that has such adapters.

    Raises:
        MismatchError: It has others.
    """
    have = adapters(vlm)
    if have.keys() != weights.keys():
        odd = sorted(have.keys() ^ weights.keys())[0]
        raise MismatchError(f"the adapter has {len(weights)} weights, the model {len(have)}; only one has {odd}.")
    for name, parameter in have.items():
        parameter.copy_(weights[name])


def describe(folder: Path, lora: LoRA, model: str, commit: str | None) -> None:
    """Writes what peft needs to know about an adapter."""
    write_json(
        folder / DESCRIPTION,
        {
            "peft_type": "LORA",
            "base_model_name_or_path": model,
            "revision": commit,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": rf".*{LAYERS}.*\.({'|'.join(lora.projections)})",
            "bias": "none",
            "inference_mode": True,
        },
    )
