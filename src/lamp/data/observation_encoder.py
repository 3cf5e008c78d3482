"""Observations to tokens while acting, as the feature cache holds them, and whether a backbone can tell instructions apart."""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lamp.data.feature_cache.encode import Adaptable, FrozenBackbone, SequenceBackbone, camera_names
from lamp.errors import DataError, MismatchError
from lamp.types import Encoded, Observations

SHOWN = 5
"""Groups of instructions that are named; the others are counted."""


@runtime_checkable
class InstructionTokenizer(Protocol):
    """A backbone, or the identity of one, with access to its tokenizer."""

    @property
    def text_room(self) -> int | None:
        """Most ids that an instruction may have; None: any number."""
        ...

    def instruction_ids(self, instruction: str) -> tuple[int, ...]:
        """The token ids of an instruction, all of them."""
        ...

    def unknown_words(self, instruction: str) -> tuple[str, ...]:
        """What of an instruction is outside of the vocabulary: the backbone sees that something is there, but not what."""
        ...


@dataclass(frozen=True, kw_only=True)
class InstructionReport:
    """Where a backbone misreads instructions."""

    equal: tuple[tuple[str, ...], ...]
    """Groups of different instructions with equal tokens."""
    spelled: tuple[tuple[str, ...], ...]
    """The same where they differ in capitals and spaces only, which is no harm."""
    long: tuple[tuple[str, int], ...]
    """Instructions with more tokens than there is room for, and how many."""
    room: int | None
    unknown: tuple[str, ...]
    """Words of all these instructions that are not in the vocabulary."""

    @property
    def problems(self) -> list[str]:
        """A line for each thing that a policy could not learn."""
        lines = []
        for group in self.equal[:SHOWN]:
            of_group = [word for word in self.unknown if any(word in text for text in group)]
            why = f", for it does not know {_listed(of_group)}" if of_group else ""
            lines.append(f"{_listed(group)} are the same to the backbone{why}")
        if len(self.equal) > SHOWN:
            lines.append(f"{len(self.equal) - SHOWN} more groups of instructions are the same to it")
        lines += [f"{text[:80]!r} has {count} tokens; text_tokens is {self.room}" for text, count in self.long[:SHOWN]]
        if len(self.long) > SHOWN:
            lines.append(f"{len(self.long) - SHOWN} more instructions are too long")
        return lines

    @property
    def remarks(self) -> list[str]:
        """A line for each harmless peculiarity."""
        lines = [f"{_listed(group)} are the same to the backbone" for group in self.spelled[:SHOWN]]
        apart = [word for word in self.unknown if not any(word in text for group in self.equal for text in group)]
        if apart:
            lines.append(f"the backbone does not know {_listed(apart)}: it sees that something stands there, not what")
        return lines


def unreadable(backbone: object, instructions: Iterable[str]) -> InstructionReport | None:
    """Compares instructions as a backbone sees them; None where its tokenizer is not accessible.

    Args:
        instructions: Those of a dataset, or of several that are trained on together.
    """
    if not isinstance(backbone, InstructionTokenizer):
        return None
    groups: dict[tuple[int, ...], list[str]] = {}
    long: list[tuple[str, int]] = []
    unknown: dict[str, None] = {}
    room = backbone.text_room
    for text in dict.fromkeys(text for text in instructions if text.strip()):
        ids = backbone.instruction_ids(text)
        groups.setdefault(ids, []).append(text)
        unknown |= dict.fromkeys(backbone.unknown_words(text))
        if room is not None and len(ids) > room:
            long.append((text, len(ids)))
    several = [tuple(group) for group in groups.values() if len(group) > 1]
    spelled = [group for group in several if len({_spelling(text) for text in group}) == 1]
    return InstructionReport(
        equal=tuple(group for group in several if group not in spelled),
        spelled=tuple(spelled),
        long=tuple(long),
        room=room,
        unknown=tuple(unknown),
    )


def check_instructions(backbone: object, instructions: Iterable[str], where: object) -> None:
    """Refuses instructions that a backbone cannot tell apart or has no room for; prints other unknown words to stderr.

    Args:
        backbone: The backbone, or its identity; one without an accessible tokenizer passes.
        instructions: Those of a dataset, or of several that are trained on together.
        where: What they are from, for the error.

    Raises:
        DataError: A policy could not learn them.
    """
    report = unreadable(backbone, instructions)
    if report is None:
        return
    if report.problems:
        remedies = list(_remedies(report))
        raise DataError(f"{where}: {'; '.join(report.problems)}. Expected: {', or '.join(remedies)}")
    for line in report.remarks:
        print(f"{where}: {line}", file=sys.stderr)


def _remedies(report: InstructionReport) -> Iterator[str]:
    if report.long:
        yield f"backbone.text_tokens of at least {max(count for _, count in report.long)}"
        yield "shorter instructions"
    if report.equal:
        yield "instructions in words that the backbone knows, such as English ones" if report.unknown else "other words"
        yield "a backbone that tells them apart, such as Qwen3-VL (--recipe paper_libero, or recipe fit --like paper_real)"


def _spelling(text: str) -> str:
    return " ".join(text.casefold().split())


def _listed(words: Iterable[str]) -> str:
    """The first few, quoted."""
    shown = list(words)
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    return ", ".join(repr(word[:80]) for word in shown[:8]) + more


INSTRUCTIONS_KEPT = 1024
log = logging.getLogger("lamp")


class ObservationEncoder:
    """Encodes observations; instructions that are read apart from images are read once and kept."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        self.backbone = backbone
        self.instruction_cache: OrderedDict[str, tuple[Float[Tensor, "n d"], Bool[Tensor, " n"], bool]] = OrderedDict()
        """Text tokens and mask of the instructions seen lately, and whether all are real; the least recently used goes first."""

    def encode(self, observations: Observations) -> Encoded:
        """Returns the backbone's tokens: cameras in order, then the instruction.

        Raises:
            MismatchError: A camera is missing.
        """
        cameras = camera_names(self.backbone)
        missing = [camera for camera in cameras if camera not in observations.images]
        if missing:
            have = ", ".join(observations.images) or "none"
            raise MismatchError(f"no camera {missing[0]!r}; it has {have}. Expected {', '.join(cameras)}.")
        if isinstance(self.backbone, SequenceBackbone):
            return self.backbone.encode(observations)
        images = [self.backbone.image_tokens(camera, observations.images[camera]) for camera in cameras]
        read = [self._read(instruction) for instruction in observations.instructions]
        text, text_mask, whole = zip(*read, strict=True)
        device = images[0].device
        tokens = torch.cat([*images, torch.stack(text).to(device)], dim=1)
        seen = torch.ones(len(tokens), sum(part.shape[1] for part in images), dtype=torch.bool, device=device)
        mask = torch.cat([seen, torch.stack(text_mask).to(device)], dim=1)
        return Encoded(tokens=tokens, mask=mask, whole=all(whole))

    def encode_for_prior(self, observations: Observations) -> Encoded | None:
        """What the Motion Expert reads where that are other tokens than `encode`'s: those without the backbone's adapters."""
        return self.backbone.encode_for_prior(observations) if isinstance(self.backbone, Adaptable) else None

    def _read(self, instruction: str) -> tuple[Tensor, Tensor, bool]:
        assert not isinstance(self.backbone, SequenceBackbone)
        if instruction not in self.instruction_cache:
            tokens, mask = self.backbone.text_tokens([instruction])
            if isinstance(self.backbone, InstructionTokenizer) and (
                unknown := self.backbone.unknown_words(instruction)
            ):
                words = ", ".join(map(repr, unknown))
                log.warning(
                    "instruction %r: the backbone does not know %s, and takes no meaning from it", instruction, words
                )
            # `all` waits for the device: once an instruction here, and not at every step.
            self.instruction_cache[instruction] = (tokens[0], mask[0], bool(mask[0].all()))
            if len(self.instruction_cache) > INSTRUCTIONS_KEPT:
                self.instruction_cache.popitem(last=False)
        self.instruction_cache.move_to_end(instruction)
        return self.instruction_cache[instruction]
