"""Fine-tuning: a run that begins with the weights of another checkpoint, after a check that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lamp.configuration import to_json
from lamp.data.embodiment import Embodiment
from lamp.data.policy_dataset import PolicyScaling
from lamp.errors import MismatchError
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.train.checkpoint import ADAPTER_PREFIX, Expected, load_adapter, load_checkpoint
from lamp.train.checkpoint_metadata import Description, StartedFrom, checkpoint_folder
from lamp.train.run_folder import first_difference

Normalizers = Literal["keep", "refit"]
"""What a fine-tune normalises with: as the checkpoint did, so that weights mean what they meant, or fitted to the new data."""
FREE = ("solver_steps", "motion_tau", "action_tau", "dropout")
"""Settings of a model, by their names or a part of them, that its weights do not depend on."""


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """A checkpoint to begin with."""

    path: Path
    description: Description
    weights: Mapping[str, Tensor]
    adapter: Mapping[str, Tensor]
    """Of the backbone's adapters, under the names that a stage gives them; empty where it has none."""
    normalizers: Normalizers = "keep"

    @classmethod
    def read(
        cls, path: Path, normalizers: Normalizers, *, kind: str, key: str, backbone: Mapping[str, Any]
    ) -> FineTune:
        """Reads a checkpoint.

        Args:
            kind: Which stage's it has to be.
            key: Of the expected backbone.
            backbone: Description of the expected backbone.

        Raises:
            DataError: There is no checkpoint, or it is damaged.
            MismatchError: It is of the other stage or another backbone.
        """
        expected = Expected(kind=kind, backbone_key=key, backbone=backbone)
        model, description = load_checkpoint(path, expected=expected)
        adapter = load_adapter(checkpoint_folder(path), description)
        return cls(
            path=path,
            description=description,
            weights=model.state_dict(),
            adapter={ADAPTER_PREFIX + name: value for name, value in adapter.items()},
            normalizers=normalizers,
        )

    @property
    def record(self) -> StartedFrom:
        """What a checkpoint says of where its run began."""
        description = self.description
        return StartedFrom(
            weights_sha256=description.weights_sha256,
            step=description.step,
            data=description.data,
            normalizers=self.normalizers,
            prior=description.prior or "predicted",
        )

    def load_into(self, model: LaMP) -> None:
        """Gives a model the checkpoint's weights.

        Raises:
            MismatchError: It is another model.
        """
        difference = first_difference(_fixed(self.description.model), _fixed(model.config), "model")
        if difference is not None:
            name, have, wanted = difference
            raise MismatchError(
                f"checkpoint {self.path} has {name} = {have!r}, the recipe asks for {wanted!r}; expected the same to begin with "
                f"its weights: choose the recipe it was trained with, or set --{name.replace('_', '-')} as it has it"
            )
        model.load_state_dict(dict(self.weights))

    def scaling_of(self, name: str, embodiment: Embodiment, *, own: bool) -> PolicyScaling | None:
        """The checkpoint's normalisers for a dataset; None where they are to be fitted.

        Args:
            own: Whether it is the policy's own dataset, not one that is mixed in.

        Raises:
            MismatchError: The actions mean something else than the checkpoint's.
        """
        record = self.description.policy
        if self.normalizers == "refit" or record is None:
            return None
        others = {other.data.name: other for other in record.others}
        before = record if own and name not in others else others.get(name)
        if before is None:
            return None
        for what in ("kind", "gripper"):
            one, other = (to_json(getattr(of, what)) for of in (before.embodiment, embodiment))
            if one != other:
                raise MismatchError(
                    f"{name}: the embodiment {embodiment.name!r} has {what} {other}, the checkpoint {self.path} was trained with "
                    f"{one}; its normalisers do not fit such actions: give --normalizers refit, or the embodiment it had"
                )
        return before.scaling


def _fixed(model: LaMPConfig) -> Any:
    """What weights depend on, as plain JSON values."""

    def without(plain: Any) -> Any:
        if not isinstance(plain, Mapping):
            return plain
        return {name: without(item) for name, item in plain.items() if not any(free in name for free in FREE)}

    return without(to_json(model))
