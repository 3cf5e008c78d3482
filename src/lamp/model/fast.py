"""The fast path: the same networks and the same arithmetic, prepared for nothing but acting.

What does not change from one observation to the next is computed once (flow times and all that they modulate), and products go
through the fastest kernels at hand: on a CPU in float32, oneDNN's, with weights laid out for them; on a GPU, blocks go through
torch's compiler and one CUDA graph runs from the backbone's tokens to the actions (with `lamp.model.fast_step`, from the pixels),
so that the host launches one thing a chunk.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from lamp.flow_matching import step_times
from lamp.model.action_expert import ActionExpert
from lamp.model.lamp import LaMP
from lamp.model.layers import Block, Mlp, PackedLinear, PackedMlp, has_onednn
from lamp.model.motion_expert import MotionBlock
from lamp.model.realtime import PreviousChunk, RealTimeMethod
from lamp.types import Encoded

GRAPHS_KEPT = 16
"""Each holds the memory of one forward pass; the one used longest ago goes first."""
COMPILED_KEPT = 256
"""Versions of one block, each for other shapes, that the compiler makes before it refuses."""
WARM_UP = 3
"""Calls before a CUDA graph is recorded, in which the compiler and the libraries choose their kernels."""


def prepare_model(model: LaMP, dtype: torch.dtype = torch.float32) -> LaMP:
    """Returns a model that acts as `model` does, faster, on the device where it is. It shares parameters, and cannot be trained.

    Args:
        dtype: Of the weights; another than theirs makes a copy. Time and noise stay in float32.
    """
    same = all(parameter.dtype == dtype for parameter in model.parameters())
    # deepcopy takes what is in its memo as it is: the modules are new, the tensors are not.
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())} if same else {}
    twin = copy.deepcopy(model, shared).eval()
    twin = twin if same else twin.to(dtype)
    with torch.inference_mode():
        if _device(twin).type == "cpu" and dtype == torch.float32 and has_onednn():
            _pack(twin)
        times = step_times(model.config.solver_steps)
        if twin.motion_expert is not None:
            twin.motion_expert.precompute_times(times[: model.config.evaluations["motion"]])
        if twin.action_expert is not None:
            twin.action_expert.precompute_times(times[:-1])
    return twin


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _pack(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        elif isinstance(child, Mlp):
            setattr(module, name, PackedMlp(PackedLinear(child.up), PackedLinear(child.down)))
        else:
            _pack(child)


def compile_blocks(model: LaMP) -> None:
    """Has torch's compiler fuse each kind of block. It is compiled once for all layers and solver steps: the whole model as one
    piece would take many minutes."""
    for module in model.modules():
        if isinstance(module, MotionBlock):
            module.compile(fullgraph=True, dynamic=False)
        elif isinstance(module, Block):
            module.project = torch.compile(module.project, fullgraph=True, dynamic=False)
            module.attend = torch.compile(module.attend, fullgraph=True, dynamic=False)
        elif isinstance(module, ActionExpert):
            module.embed = torch.compile(module.embed, fullgraph=True, dynamic=False)


class FastActor:
    """Acts like `LaMP.act`. On a GPU, the first call of each shape takes a while: it compiles and records."""

    def __init__(self, model: LaMP, dtype: torch.dtype = torch.float32, *, compiled: bool = True) -> None:
        """
        Args:
            dtype: In which to compute.
            compiled: Use torch's compiler on a GPU; False: a CUDA graph of the kernels as they are.
        """
        self.model = prepare_model(model, dtype)
        self.device = _device(self.model)
        if compiled and self.device.type == "cuda":
            compile_blocks(self.model)
        self._graphs = CudaGraphs()

    @torch.inference_mode()
    def act(
        self,
        encoded: Encoded,
        state: Float[Tensor, "b s"],
        *,
        motion_noise: Float[Tensor, "b k t 3"] | None,
        action_noise: Float[Tensor, "b h a"],
        prior: Encoded | None = None,
        previous: PreviousChunk | None = None,
        real_time: RealTimeMethod | None = None,
    ) -> Float[Tensor, "b h a"]:
        """Returns a normalised action chunk, as `LaMP.act`; going on from another is not part of the recorded graphs."""
        if encoded.whole is None:
            # The one question to the device, where the encoder has not answered it: without a mask, attention is faster.
            encoded = replace(encoded, whole=bool(encoded.mask.all()))
        # The weights have their type: autocast would only convert what need not be.
        with torch.autocast(self.device.type, enabled=False):
            if self.device.type != "cuda" or previous is not None:
                return self.model.act(
                    encoded, state, motion_noise=motion_noise, action_noise=action_noise, prior=prior, previous=previous,
                    real_time=real_time,
                )  # fmt: skip
            return self._replayed(encoded, state, motion_noise, action_noise, prior)

    def _replayed(
        self,
        encoded: Encoded,
        state: Tensor,
        motion_noise: Tensor | None,
        action_noise: Tensor,
        prior: Encoded | None,
    ) -> Float[Tensor, "b h a"]:
        given = {
            "tokens": encoded.tokens,
            "mask": encoded.mask,
            "prior_tokens": None if prior is None else prior.tokens,
            "prior_mask": None if prior is None else prior.mask,
            "state": state,
            "motion_noise": motion_noise,
            "action_noise": action_noise,
        }
        given = {name: tensor if tensor is None else pad_batch(tensor) for name, tensor in given.items()}
        model, whole = self.model, encoded.whole

        def act(
            tokens: Tensor, mask: Tensor, prior_tokens: Tensor | None, prior_mask: Tensor | None, **rest: Any
        ) -> Tensor:
            # The same observation's tokens: there are as many, and as many are real.
            read = None
            if prior_tokens is not None and prior_mask is not None:
                read = Encoded(tokens=prior_tokens, mask=prior_mask, whole=whole)
            return model.act(Encoded(tokens=tokens, mask=mask, whole=whole), prior=read, **rest)

        return self._graphs.run(act, given, key=whole)[: len(state)]


def pad_batch(tensor: Shaped[Tensor, " b *shape"]) -> Shaped[Tensor, " c *shape"]:
    """Repeats the last sample up to the next power of two, so that few batch sizes need a graph of their own."""
    b = len(tensor)
    room = 1 << (b - 1).bit_length()
    return tensor if room == b else torch.cat([tensor, tensor[-1:].expand(room - b, *tensor.shape[1:])])


class CudaGraph:
    """A function of tensors on a GPU, recorded once as a CUDA graph and replayed: one launch, whatever it holds."""

    def __init__(self, function: Callable[..., Tensor], given: Mapping[str, Tensor | None]) -> None:
        """
        Args:
            function: Does nothing that depends on the tensors' values.
            given: Its arguments by name, of the shapes and types that it will have; None stays None.
        """
        # Whatever else the function reads has to stay where it is.
        self._function = function
        self._inputs = {name: tensor if tensor is None else tensor.clone() for name, tensor in given.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(**self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile, such as waiting for a stream of their own, does not spoil the recording.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = function(**self._inputs)

    def __call__(self, given: Mapping[str, Tensor | None]) -> Tensor:
        for name, place in self._inputs.items():
            if place is not None and (tensor := given[name]) is not None:
                place.copy_(tensor)
        self._graph.replay()
        return self._output.clone()


class CudaGraphs:
    """CUDA graphs of functions of tensors, one for each shape."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, CudaGraph] = {}

    def run(
        self, function: Callable[..., Tensor], given: Mapping[str, Tensor | None], *, key: Hashable = None
    ) -> Tensor:
        """Returns what the function does, recording it where it has not been called with such shapes lately.

        Args:
            function: Does nothing that depends on the tensors' values.
            given: Its arguments by name.
            key: Identifies the function, where there are several.
        """
        kinds = ((name, tensor if tensor is None else (tensor.shape, tensor.dtype)) for name, tensor in given.items())
        shapes = (key, *kinds)
        graph = self._kept.pop(shapes, None) or _record(function, given)
        self._kept[shapes] = graph
        if len(self._kept) > GRAPHS_KEPT:
            del self._kept[next(iter(self._kept))]
        return graph(given)


def _record(function: Callable[..., Tensor], given: Mapping[str, Tensor | None]) -> CudaGraph:
    # The compiler makes a version of a block for each shape, and by default refuses the ninth.
    with torch._dynamo.config.patch(cache_size_limit=COMPILED_KEPT):
        return CudaGraph(function, given)


class Stopwatch:
    """Times the parts of a call. On a GPU by events of the device, so that the host need not wait in between."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._names: list[str] = []
        self._times = [self._now()]

    def note(self, part: str) -> None:
        """Ends a part."""
        self._names.append(part)
        self._times.append(self._now())

    def times_ms(self) -> dict[str, float]:
        """Returns the milliseconds of each part, once the device is done."""
        if self._cuda:
            self._times[-1].synchronize()
        return {
            name: start.elapsed_time(end) if self._cuda else 1000.0 * (end - start)
            for name, (start, end) in zip(self._names, pairwise(self._times), strict=True)
        }

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
