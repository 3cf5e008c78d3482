"""`lamp import-released`: the authors' checkpoint as one of ours, with all its conventions on record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import lamp.version
from lamp.data.normalise import ClampedRange, RawState
from lamp.data.samples import PolicyScaling
from lamp.errors import ConfigError, DataError
from lamp.files import atomic_path, sha256_of
from lamp.model.released.artifact import Artifact, open_artifact
from lamp.model.released.config import ReleasedConfig
from lamp.model.released.keys import VLM, parts_of, to_ours
from lamp.model.released.reading import read_pt
from lamp.model.released.sizes import MOTION
from lamp.sceneflow.bounds import MotionBounds
from lamp.train.checkpoint import motion_weights, save_checkpoint
from lamp.train.configs import Imported, ImportedVlm
from lamp.train.description import (
    BackboneRecord,
    CameraInput,
    DataRecord,
    Description,
    FlowRecord,
    MotionSource,
    PolicyRecord,
)
from lamp.train.released.vlm import description_files, write_vlm
from lamp.train.tensors import content_hash

VLM_FOLDER = "vlm"
CAMERAS = ("agentview", "wrist")
"""Our names of the release's two views, in its order."""
RECORDED = 256
"""Side of the images in the release's data and evaluation, before they are resized. [px]"""
FPS = 20.0
"""Of LIBERO."""
HEIGHT = 2
"""Where the state holds the height of the hand."""


@dataclass(frozen=True, kw_only=True)
class Imports:
    """What came of an import."""

    checkpoint: Path
    kind: str
    notes: tuple[str, ...]
    """What the user has to know: what is missing, and where to get it."""


def import_released(source: str, out: Path, *, revision: str | None = None, vlm: Path | None = None) -> Imports:
    """Writes a checkpoint of ours with the weights and all conventions of a release.

    Args:
        source: A folder with `config.yaml`, `dataset_statistics.json` and one `.pt`, or a hub id.
        out: The new checkpoint's folder.
        revision: The hub's branch or commit.
        vlm: A folder with the VLM's `config.json` and tokenizer; None looks for them under the hub id in `config.yaml`.

    Raises:
        ConfigError: `out` is in use, or `config.yaml` describes something else than the published code builds.
        DataError: A file is missing or damaged, or the hub cannot be reached.
        MismatchError: Tensors are missing, unknown or of another shape.
    """
    refuse_used(out)
    artifact = open_artifact(source, revision)
    scaling = _scaling(artifact)
    tensors = read_pt(artifact.checkpoint)
    vlm_tensors = {name.removeprefix(VLM): value for name, value in tensors.items() if name.startswith(VLM)}
    weights = to_ours(tensors, artifact.config.sizes, str(artifact.checkpoint))
    kind = "motion" if parts_of(tensors, str(artifact.checkpoint)) == MOTION else "policy"
    if kind == "policy" and scaling is None:
        raise DataError(f"no dataset statistics at {artifact.folder}; a policy needs its dataset_statistics.json.")
    notes: list[str] = []
    described = description_files(artifact.config, vlm, notes) if vlm_tensors else None
    with atomic_path(out) as folder:
        trained = ImportedVlm(
            source=artifact.config.base_vlm,
            revision=artifact.config.revision,
            folder=VLM_FOLDER if vlm_tensors else None,
            sha256=content_hash(vlm_tensors) if vlm_tensors else None,
            described=described is not None,
        )
        save_checkpoint(folder, describe(artifact, weights, scaling if kind == "policy" else None, trained), weights)
        if vlm_tensors:
            write_vlm(folder / VLM_FOLDER, vlm_tensors, described)
    return Imports(checkpoint=out, kind=kind, notes=tuple(notes))


def refuse_used(out: Path) -> None:
    """
    Raises:
        ConfigError: There is something at `out`.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is in use; expected a new or an empty folder.")


def describe(
    artifact: Artifact, weights: dict[str, Tensor], scaling: PolicyScaling | None, vlm: ImportedVlm
) -> Description:
    """Records every convention of a release; without scaling, of its Motion Expert alone."""
    config, checksum = artifact.config, sha256_of(artifact.checkpoint)
    data = DataRecord(
        name=f"the authors' {artifact.source}",
        fingerprint=checksum,
        episodes=0,
        frames=0,
        tasks=(),
        validation_episodes=(),
    )
    step = artifact.manifest.get("optimizer_step")
    step = step if isinstance(step, int) else 0
    policy, origin = None, None
    model = config.model(MOTION)
    if scaling is not None:
        model = config.model()
        policy = PolicyRecord(
            state_width=config.sizes.S,
            scaling=scaling,
            chunk=config.sizes.H,
            execute=config.sizes.H,
            fps=FPS,
        )
        origin = MotionSource(sha256=content_hash(motion_weights(weights)), step=0, data=data)
    return Description(
        kind="motion" if scaling is None else "policy",
        model=model,
        backbone=backbone_record(config, vlm),
        flow=_flow(config),
        policy=policy,
        motion_source=origin,
        training=Imported(
            source=artifact.source,
            revision=artifact.revision,
            sha256=checksum,
            config=artifact.raw_config,
            statistics=artifact.raw_statistics,
            vlm=vlm,
        ),
        data=data,
        step=step,
        averaged=False,
        exactly_reproducible=False,
        code=lamp.version.code_version(),
        packages=lamp.version.package_versions(),
    )


def backbone_record(config: ReleasedConfig, vlm: ImportedVlm) -> BackboneRecord:
    """Records the VLM: which, how its inputs are made, and where its tokens are read."""
    weights = vlm.sha256[:16] if vlm.sha256 else "as published"
    height, width = config.image_size
    return BackboneRecord(
        key=f"qwen3_vl {config.base_vlm}@{config.revision}, weights {weights}",
        description={
            "kind": "qwen3_vl",
            "source": config.base_vlm,
            "revision": config.revision,
            "weights": vlm.folder,
            "weights_sha256": vlm.sha256,
            # transformers 4.57, with which the release was trained, gives the last layer's output before the final norm.
            "feature_layer": "pre_norm",
            "image_size": [height, width],
            "padding": "left",
            "generation_prompt": True,
        },
        cameras=tuple(CameraInput(name=name, height=RECORDED, width=RECORDED) for name in CAMERAS),
        prompt=to_prompt(config.prompt),
    )


def to_prompt(template: str | None) -> str:
    """The release's prompt as one for `str.format`: every brace but the instruction's is doubled."""
    if template is None:
        return "{instruction}"
    doubled = template.replace("{", "{{").replace("}", "}}")
    return doubled.replace("{{instruction}}", "{instruction}")


def from_prompt(prompt: str) -> str | None:
    """The inverse of `to_prompt`."""
    return None if prompt == "{instruction}" else prompt.replace("{{", "{").replace("}}", "}")


def _flow(config: ReleasedConfig) -> FlowRecord:
    side = config.sizes.grid
    return FlowRecord(
        camera=CAMERAS[0],
        grid=(side, side),
        horizon=config.sizes.T,
        stride=1,
        fps=FPS,
        bounds=MotionBounds(low=config.bounds_low, high=config.bounds_high),
        clamped=(0.0, 0.0, 0.0),
    )


def _scaling(artifact: Artifact) -> PolicyScaling | None:
    """Min-max to [-1, 1] and back with clamping; the grippers of state and action are switches; the hand's height is hidden.

    Raises:
        ConfigError: The state is too short to have both a height and a gripper.
    """
    found, sizes = artifact.statistics, artifact.config.sizes
    if found is None:
        return None
    if sizes.S <= HEIGHT + 1 or sizes.A < 2:
        raise ConfigError(f"{artifact.folder}: state_dim {sizes.S}, action_dim {sizes.A}; expected LIBERO's 8 and 7.")
    state = ClampedRange(
        low=found.state_low,
        high=found.state_high,
        switches=(sizes.S - 1,),
        hidden=(HEIGHT,) if artifact.config.mask_z else (),
    )
    actions = ClampedRange(low=found.action_low, high=found.action_high, switches=(sizes.A - 1,))
    return PolicyScaling(state_transform=RawState(), state=state, actions=actions)
