"""The fast path: the same networks and the same arithmetic, prepared for nothing but acting.

What does not change from one observation to the next is computed once (flow times and all that they modulate), and products go
through the fastest kernels at hand: on a CPU in float32, oneDNN's, with weights laid out for them; on a GPU, torch's compiler
and one CUDA graph from the backbone's tokens to the actions, so that the host launches one thing a chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamp.flow_matching import step_times
from lamp.model import onednn
from lamp.model.lamp import Arrival, LaMP
from lamp.model.layers import Mlp
from lamp.types import Encoded


def prepared(model: LaMP, dtype: torch.dtype = torch.float32) -> LaMP:
    """Returns a model that acts as `model` does, faster, on the device where it is. It shares parameters, and cannot be trained.

    Args:
        model: A model whose weights no longer change.
        dtype: Of the weights; another than theirs makes a copy. Time and noise stay in float32.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    # deepcopy takes what is in its memo as it is: the modules are new, the tensors are not.
    twin = copy.deepcopy(model, shared).eval()
    if any(parameter.dtype != dtype for parameter in twin.parameters()):
        twin = copy.deepcopy(model).eval().to(dtype)
    with torch.inference_mode():
        if _device(twin).type == "cpu" and dtype == torch.float32 and onednn.available():
            _pack(twin)
        if twin.motion_expert is not None:
            last = 1 if isinstance(model.config.hidden_at, Arrival) else 0
            twin.motion_expert.fix_times(step_times(model.config.solver_steps)[: last + 1])
    return twin


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _pack(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, onednn.PackedLinear(child))
        elif isinstance(child, Mlp):
            setattr(module, name, onednn.PackedMlp(onednn.PackedLinear(child.up), onednn.PackedLinear(child.down)))
        else:
            _pack(child)


class FastActor:
    """Acts like `LaMP.act`. On a GPU, the first call of each shape takes a while: it compiles and records."""

    def __init__(self, model: LaMP, dtype: torch.dtype = torch.float32, *, compiled: bool = True) -> None:
        """
        Args:
            model: A trained model.
            dtype: In which to compute.
            compiled: Use torch's compiler on a GPU; False: a CUDA graph of the kernels as they are.
        """
        self.model = prepared(model, dtype)
        self.device = _device(self.model)
        self._graphs: dict[Hashable, _Graph] = {}
        self._compiled = compiled

    @torch.inference_mode()
    def act(
        self,
        encoded: Encoded,
        state: Float[Tensor, "b s"],
        *,
        motion_noise: Float[Tensor, "b k t 3"] | None,
        action_noise: Float[Tensor, "b h a"],
    ) -> Float[Tensor, "b h a"]:
        """Returns a normalised action chunk, as `LaMP.act`."""
        # The one question to the device: attention without a mask is another, faster kernel.
        encoded = replace(encoded, whole=encoded.whole or bool(encoded.mask.all()))
        if self.device.type != "cuda":
            return self.model.act(encoded, state, motion_noise=motion_noise, action_noise=action_noise)
        given = (encoded.tokens, encoded.mask, state, motion_noise, action_noise)
        key = (encoded.whole, *(None if tensor is None else (tuple(tensor.shape), tensor.dtype) for tensor in given))
        if key not in self._graphs:
            self._graphs[key] = _Graph(self.model, encoded.whole, given, compiled=self._compiled)
        return self._graphs[key](given)


Given = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]
"""Tokens, mask, state, motion noise, action noise."""


class _Graph:
    """`LaMP.act` for one set of shapes, recorded once and replayed."""

    def __init__(self, model: LaMP, whole: bool, given: Given, *, compiled: bool) -> None:
        self._model, self._whole = model, whole
        self._act = torch.compile(self._plain, fullgraph=True, dynamic=False) if compiled else self._plain
        self._inputs: Given = tuple(None if tensor is None else tensor.clone() for tensor in given)  # pyright: ignore[reportAttributeAccessIssue]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._act(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._act(*self._inputs)

    def _plain(self, tokens: Tensor, mask: Tensor, state: Tensor, motion: Tensor | None, noise: Tensor) -> Tensor:
        encoded = Encoded(tokens=tokens, mask=mask, whole=self._whole)
        return self._model.act(encoded, state, motion_noise=motion, action_noise=noise)

    def __call__(self, given: Given) -> Tensor:
        for place, tensor in zip(self._inputs, given, strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)
        self._graph.replay()
        return self._output.clone()
