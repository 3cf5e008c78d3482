"""Other words for the same task, from templates: no language model is asked.

Deviation: LIBERO-Plus' wordings were written by one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lamp_client.envs.perturbations import Drawn, Effects, Standard
from lamp_client.errors import InvalidValueError

FRAMES = (
    "please {}",
    "could you {}",
    "would you mind helping me: {}",
    "i need you to {}",
    "{} for me please",
    "your next job is to {}",
    "when you are ready {}",
)
"""Polite or wordy forms around an instruction."""

CONTEXTS = (
    "we are tidying up before the guests arrive so {}",
    "the kitchen is a mess today and nothing is where it belongs but {}",
    "leave everything else where it is and {}",
    "i had a long day and would like some help with one thing now {}",
    "the floor has just been cleaned and the lights are on so {}",
)
"""Forms that say much that does not matter."""

VERBS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\bpick up\b", ("grab", "lift", "take", "get hold of")),
    (r"\bplace (it|them)\b", (r"put \1", r"set \1 down", r"drop \1 off", r"lay \1")),
    (r"\bput\b", ("place", "set", "lay")),
    (r"\bpush\b", ("slide", "shove", "move")),
    (r"\bopen\b", ("pull open", "slide open")),
    (r"\bclose\b", ("shut",)),
    (r"\bturn on\b", ("switch on", "start")),
)
"""Words for actions, tried in order; a word that was put in is not replaced again."""

NOUNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\balphabet soup\b", ("can of letter soup", "soup with the letters")),
    (r"\bcream cheese( box)?\b", ("package of soft white cheese", "box of cheese spread")),
    (r"\bsalad dressing\b", ("bottle of dressing for salads",)),
    (r"\bbbq sauce\b", ("barbecue sauce", "bottle of grill sauce")),
    (r"\bketchup\b", ("bottle of tomato ketchup", "red sauce for fries")),
    (r"\btomato sauce\b", ("can of sauce made of tomatoes",)),
    (r"\bbutter\b", ("package of butter", "dairy spread in the box")),
    (r"\bmilk\b", ("carton of milk",)),
    (r"\bchocolate pudding\b", ("box of chocolate dessert",)),
    (r"\borange juice\b", ("carton of juice made of oranges",)),
    (r"\bbasket\b", ("woven basket", "wicker container")),
    (r"\bblack bowl\b", ("dark bowl", "round black dish")),
    (r"\bbowl\b", ("round deep dish",)),
    (r"\bramekin\b", ("small baking dish", "little round cup")),
    (r"\bcookie box\b", ("box of biscuits",)),
    (r"\bplate\b", ("flat dish", "dinner plate")),
    (r"\bstove\b", ("cooker", "cooktop")),
    (r"\bwooden cabinet\b", ("cupboard made of wood",)),
    (r"\bcabinet\b", ("cupboard",)),
    (r"\bwine bottle\b", ("bottle of wine",)),
    (r"\brack\b", ("bottle holder",)),
    (r"\bmoka pots\b", ("stovetop coffee makers",)),
    (r"\bmoka pot\b", ("stovetop coffee maker",)),
    (r"\bmug\b", ("cup",)),
    (r"\bmicrowave\b", ("microwave oven",)),
    (r"\bbook\b", ("volume to read",)),
    (r"\bcaddy\b", ("desk organizer",)),
)
"""Words for things, as `VERBS`."""


@dataclass(frozen=True, kw_only=True)
class Reworded:
    """The instruction in other words; at least one of the three is changed."""

    category: ClassVar[str] = "language"
    verbs: bool = False
    """Other words for what is to be done."""
    nouns: bool = False
    """Other words for things."""
    around: tuple[str, ...] = ()
    """Forms around the instruction, one of which is drawn; `{}` stands for it."""

    def __post_init__(self) -> None:
        if not (self.verbs or self.nouns or self.around) or any(form.count("{}") != 1 for form in self.around):
            raise InvalidValueError(
                f"{self}: expected verbs, nouns or forms around the instruction, each with one {{}} for it."
            )

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws the words."""
        text = standard.instruction
        if self.verbs:
            text = exchanged(text, VERBS, generator)
        if self.nouns:
            text = exchanged(text, NOUNS, generator)
        if self.around:
            text = self.around[int(generator.integers(len(self.around)))].format(text)
        return Drawn(effects=Effects(instruction=text), numbers={"instruction": text})


def exchanged(text: str, words: tuple[tuple[str, tuple[str, ...]], ...], generator: np.random.Generator) -> str:
    """Exchanges words; every occurrence of the same words gets the same ones."""
    chosen: list[str] = []
    for pattern, others in words:
        found = re.search(pattern, text)
        if found is None:
            continue
        other = found.expand(others[int(generator.integers(len(others)))])
        # A mark stands in until all are found, so that no later rule changes what an earlier one put in.
        text = re.sub(pattern, f"\x00{len(chosen)}\x00", text)
        chosen.append(other)
    return re.sub(r"\x00(\d+)\x00", lambda mark: chosen[int(mark[1])], text)
