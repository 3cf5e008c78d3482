"""Which memory a computation holds at each moment, noted operator by operator; with tensors that hold no values, at any size."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """Notes every storage that operators make, and its end. What existed before and was not made known counts as made."""

    def __init__(self, known: Iterable[Tensor], device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._alive: dict[int, weakref.ref[Any] | None] = {tensor.untyped_storage()._cdata: None for tensor in known}
        self._number: dict[int, int] = {}
        self.events: list[tuple[int, int]] = []
        """(number of a storage, bytes gained or lost), in order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device == self._device:
                self._note(leaf)
        return out

    def number_of(self, tensor: Tensor) -> int | None:
        """The number of a tensor's storage; None where it is not on record."""
        return self._number.get(tensor.untyped_storage()._cdata)

    def fullest(self, apart: Collection[int] = ()) -> tuple[int, int]:
        """Returns what was held at the fullest moment: in the storages that are looked at apart, and in all others. [bytes]"""
        held, chosen, best = 0, 0, (0, 0)
        for number, change in self.events:
            held += change
            chosen += change if number in apart else 0
            best = max(best, (held, chosen))
        return best[1], best[0] - best[1]

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size:
            return
        number = len(self.events)
        self.events.append((number, size))
        self._number[key] = number
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, number, size))

    def _forget(self, key: int, number: int, size: int) -> None:
        self.events.append((number, -size))
        self._alive.pop(key, None)
        self._number.pop(key, None)


class LikeGpu(TorchFunctionMode):
    """Makes tensors on the meta device go through what a GPU would do: fused attention, and autocast to bfloat16 if asked for.

    torch's own autocast, and its choice of an attention kernel, ask for a device that is there.
    """

    LOWER = (functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm)
    """Of the operators that autocast runs in bfloat16, those that the models have."""

    def __init__(self, *, autocast: bool) -> None:
        super().__init__()
        self._autocast = autocast
        self._cast: dict[int, Tensor] = {}
        """Weights in bfloat16, kept until the end as autocast keeps them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if self._autocast and func in self.LOWER:
            return func(*_each(self._lower, args), **{name: self._lower(value) for name, value in kwargs.items()})
        if self._autocast and func in (functional.layer_norm, functional.softmax, torch.softmax):
            return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """A kernel that keeps its output and one number a row, as those of a GPU do; dropped weights are drawn again."""
        if self._autocast:
            query, key, value = _each(self._lower, (query, key, value))
        bias = attn_mask
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            bias = query.new_zeros(attn_mask.shape)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(query, key, value, 0.0, False, attn_mask=bias)[0]

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.requires_grad and value.is_leaf):
            return value.bfloat16()
        if id(value) not in self._cast:
            self._cast[id(value)] = value.bfloat16()
        return self._cast[id(value)]


def _each(change: Callable[[Any], Any], values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(change(value) for value in values)
