"""Plus-style perturbations: camera, robot, noise, language and light, made on LIBERO's own assets.

They follow LIBERO-Plus in spirit, without its asset archive or its wordings. They are NOT LIBERO-Plus: what they give is named
plus-style wherever it is shown, and never stands in one column with the benchmark's numbers.
"""

from __future__ import annotations

from lamp_client.envs.plus_style.combined import (
    ASPECTS,
    CATEGORIES,
    LEVELS,
    Joined,
    OneOf,
    Perturbation,
    at_level,
    parse,
)

__all__ = ["ASPECTS", "CATEGORIES", "LEVELS", "Joined", "OneOf", "Perturbation", "at_level", "parse"]
