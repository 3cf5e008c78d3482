"""Qwen3-VL's forward pass for images that always stand in the same places: transformers' modules and weights, nothing else asked.

transformers reads lengths and masks off the device while it computes, so that the host waits for the device and launches every
kernel anew. Here all that follows from the images' sizes and places is computed once. What is left depends on shapes alone: on a
GPU it is recorded as one CUDA graph for each batch size and length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from lamp.errors import MismatchError
from lamp.model.fast import CudaGraphs, pad_batch

LENGTH_STEP = 16
"""Sequences are filled up to a multiple of it, so that few lengths need a graph of their own."""


class Group(NamedTuple):
    """Images of one size, one after the other among the patches of an observation: attention takes them as a batch."""

    start: int
    stop: int
    images: int


class StaticQwen:
    """Computes what transformers' Qwen3VLModel does, up to rounding, and asks no tensor for a value.

    Attention is torch's own, which takes the flash kernel where there is one: nothing here has a mask.

    Args:
        vlm: transformers' model; its weights must not change any more, nor move.
        ids: A sequence, on the host; in every other one images stand where they stand in this one.
        grid: Frames (one), rows and columns of patches of each image in it, on the host.

    Raises:
        MismatchError: The sequence has no place for these images.
    """

    @torch.no_grad()
    def __init__(self, vlm: Any, ids: Int[Tensor, " n"], grid: Int[Tensor, "i 3"]) -> None:
        self._visual, self._language = vlm.visual, vlm.language_model
        unit = self._visual.spatial_merge_size**2
        places = (ids == vlm.config.image_token_id).nonzero()[:, 0]
        sizes = [rows * columns for _, rows, columns in grid.tolist()]
        if len(places) != sum(sizes) // unit:
            raise MismatchError(
                f"Qwen3-VL: the sequence has {len(places)} image tokens; {sum(sizes) // unit} tokens expected for images of "
                f"{sizes} patches."
            )
        # Images of the same size come together; the order of their patches matters to nothing else.
        self._order = sorted(range(len(sizes)), key=lambda image: grid[image].tolist())
        self._sizes, self._groups = sizes, _groups(grid[self._order].tolist())
        ordered = places.split([size // unit for size in sizes])
        self._places = torch.cat([ordered[image] for image in self._order]).to(vlm.device)
        self._position, self._rotation = _positions(self._visual, grid[self._order], vlm.device)
        self._vision_block, self._language_layer = _vision_block, _language_layer

    def compile(self) -> None:
        """Has torch's compiler fuse vision blocks and language layers: each kind once for all layers."""
        self._vision_block = torch.compile(_vision_block, fullgraph=True, dynamic=False)
        self._language_layer = torch.compile(_language_layer, fullgraph=True, dynamic=False)

    def __call__(
        self, ids: Int[Tensor, "b n"], positions: Int[Tensor, "b 3 n"], patches: Float[Tensor, "b p v"]
    ) -> Float[Tensor, "b n d"]:
        """Returns the language model's output.

        Args:
            ids: Sequences, padded on the right: attention is causal, so no token sees padding.
            positions: Of each token in time, rows and columns (M-RoPE).
            patches: Of an observation's images, in the order of the sequence.
        """
        seen, deep = self._encode_images(patches)
        x = self._language.embed_tokens(ids).index_copy(1, self._places, seen)
        rotation = self._language.rotary_emb(x, positions.transpose(0, 1))
        for index, layer in enumerate(self._language.layers):
            x = self._language_layer(layer, x, rotation)
            if index < len(deep):
                x = x.index_add(1, self._places, deep[index])
        return self._language.norm(x)

    def _encode_images(
        self, patches: Float[Tensor, "b p v"]
    ) -> tuple[Float[Tensor, "b m d"], list[Float[Tensor, "b m d"]]]:
        """The images' tokens, and what deepstack adds to them after each of the first language layers."""
        visual, b = self._visual, len(patches)
        if self._order != sorted(self._order):
            images = patches.split(self._sizes, dim=1)
            patches = torch.cat([images[image] for image in self._order], dim=1)
        # A convolution whose stride is its kernel's size is a product.
        embed = visual.patch_embed.proj
        x = functional.linear(patches.to(embed.weight.dtype), embed.weight.flatten(1), embed.bias) + self._position
        deep = []
        for index, block in enumerate(visual.blocks):
            x = self._vision_block(block, x, self._rotation, self._groups)
            if index in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(index)]
                deep.append(merger(x).unflatten(0, (b, -1)))
        return visual.merger(x).unflatten(0, (b, -1)), deep


class FastQwen:
    """`StaticQwen`; on a GPU with compiled blocks and recorded. The first call of each shape then takes a while.

    Args:
        compiled: Use torch's compiler on a GPU; False: a CUDA graph of the kernels as they are.
    """

    def __init__(self, vlm: Any, ids: Int[Tensor, " n"], grid: Int[Tensor, "i 3"], *, compiled: bool = True) -> None:
        self.device: torch.device = vlm.device
        self.static, self._graphs = StaticQwen(vlm, ids, grid), CudaGraphs()
        if compiled and self.device.type == "cuda":
            self.static.compile()

    @torch.inference_mode()
    def __call__(
        self,
        ids: Int[Tensor, "b n"],
        positions: Int[Tensor, "3 b n"],
        patches: Float[Tensor, "p v"],
        *,
        length: int | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Returns the language model's output; what it holds past a sequence's end means nothing.

        Args:
            ids: Sequences, padded on the right.
            positions: Of each token in time, rows and columns (M-RoPE).
            patches: Of all images, one observation after the other.
            length: To which a GPU fills all sequences up, so that one recording serves every instruction.
        """
        b, n = ids.shape
        given = by_observation(ids, positions, patches)
        with torch.autocast(self.device.type, enabled=False):
            if self.device.type != "cuda":
                return self.static(**given)
            return self._graphs.run(self.static, pad_groups(given, length))[:b, :n]


def by_observation(
    ids: Int[Tensor, "b n"], positions: Int[Tensor, "3 b n"], patches: Float[Tensor, "p v"]
) -> dict[str, Tensor]:
    """The arguments of `StaticQwen` by name: of each, one row an observation."""
    return {"ids": ids, "positions": positions.transpose(0, 1), "patches": patches.unflatten(0, (len(ids), -1))}


def pad_groups(given: Mapping[str, Tensor], length: int | None = None) -> dict[str, Tensor]:
    """Fills sequences and batch up to the few shapes that are recorded."""
    n = given["ids"].shape[1]
    more = max(n, length or 0) - n
    more += -(n + more) % LENGTH_STEP
    longer = {name: functional.pad(given[name], (0, more)) for name in ("ids", "positions")}
    return {name: pad_batch(tensor) for name, tensor in {**given, **longer}.items()}


def _groups(grids: list[list[int]]) -> tuple[Group, ...]:
    groups: list[Group] = []
    for index, grid in enumerate(grids):
        start, size = groups[-1].stop if groups else 0, grid[1] * grid[2]
        if index and grid == grids[index - 1]:
            first = groups.pop()
            groups.append(Group(first.start, start + size, first.images + 1))
        else:
            groups.append(Group(start, start + size, 1))
    return tuple(groups)


def _positions(
    visual: Any, grid: Int[Tensor, "i 3"], device: torch.device
) -> tuple[Float[Tensor, "p d"], tuple[Float[Tensor, "p e"], Float[Tensor, "p e"]]]:
    """What is added to each patch for its place in its image, and the cosines and sines by which attention knows it."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    merge = visual.spatial_merge_size
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=merge,
    )
    places = get_vision_position_ids(grid, merge).to(device)
    added = (visual.pos_embed(indices.to(device)) * weights.to(device)[..., None]).sum(1)
    added = added.to(visual.pos_embed.weight.dtype)
    cosines, sines = visual.rotary_pos_emb(added, places)
    return added, (cosines.float(), sines.float())


def _vision_block(
    block: Any,
    x: Float[Tensor, "b p d"],
    rotation: tuple[Float[Tensor, "p e"], Float[Tensor, "p e"]],
    groups: tuple[Group, ...],
) -> Float[Tensor, "b p d"]:
    """A block of the vision tower: products over all patches at once, attention within each image."""
    attn = block.attn
    query, key, value = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
    rotated = _rotated(query, rotation), _rotated(key, rotation), value
    seen = []
    for group in groups:
        # "b p heads e" -> "images heads patches e"
        q, k, v = (
            part[:, group.start : group.stop].unflatten(1, (group.images, -1)).flatten(0, 1).transpose(1, 2)
            for part in rotated
        )
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        seen.append(attended.flatten(2).unflatten(0, (-1, group.images)).flatten(1, 2))
    x = x + attn.proj(torch.cat(seen, dim=1))
    return x + block.mlp(block.norm2(x))


def _rotated(
    x: Float[Tensor, "b p heads e"], rotation: tuple[Float[Tensor, "p e"], Float[Tensor, "p e"]]
) -> Float[Tensor, "b p heads e"]:
    cosines, sines = (part[:, None] for part in rotation)
    whole = x.float()
    first, second = whole.chunk(2, dim=-1)
    return (whole * cosines + torch.cat([-second, first], dim=-1) * sines).to(x.dtype)


def _language_layer(
    layer: Any, x: Float[Tensor, "b n d"], rotation: tuple[Float[Tensor, "b n e"], Float[Tensor, "b n e"]]
) -> Float[Tensor, "b n d"]:
    """A decoder layer. Without a mask its attention is causal."""
    return layer(x, attention_mask=None, position_embeddings=rotation)
