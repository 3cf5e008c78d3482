"""`lamp import-released`: the authors' checkpoint as one of ours, with all its conventions on record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

import lamp.version
from lamp.data.feature_cache.shards import content_hash
from lamp.data.normalizers import ClampedRange, RawState
from lamp.data.policy_dataset import PolicyScaling
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.files import atomic_path, sha256_of
from lamp.model.qwen3_vl import CONTENT, PreNorm, Qwen3VLBackboneConfig
from lamp.model.qwen_processor import BARE_PROMPT
from lamp.model.released.artifact import Artifact, open_artifact, read_pt
from lamp.model.released.config import ReleasedConfig
from lamp.model.released.keys import VLM, parts_of, to_ours
from lamp.model.released.sizes import MOTION
from lamp.sceneflow.normalization import MotionBounds
from lamp.train.checkpoint import motion_weights, save_checkpoint
from lamp.train.checkpoint_metadata import (
    BackboneRecord,
    CameraInput,
    DataRecord,
    Description,
    FlowRecord,
    Imported,
    ImportedVlm,
    MotionSource,
    PolicyRecord,
    read_description,
)
from lamp.train.released.vlm import description_files, write_vlm
from lamp.types import RightPadding

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
        revision: The hub's branch or commit.
        vlm: A folder of the VLM. Where the release brings the VLM's weights, its `config.json`, tokenizer and preprocessor
            settings are taken from there; None looks for them under the hub id in `config.yaml`. Where it does not, it says
            what the VLM is, and has to be whole.

    Raises:
        ConfigError: `out` is in use, or `config.yaml` describes something else than the published code builds.
        DataError: A file is missing or damaged, or the hub cannot be reached.
        MismatchError: Tensors are missing, unknown or of another shape; the VLM is another one.
    """
    refuse_used(out)
    artifact = open_artifact(source, revision)
    settings, scaling = backbone_settings(artifact.config), _scaling(artifact)
    tensors = read_pt(artifact.checkpoint)
    vlm_tensors = {name.removeprefix(VLM): value for name, value in tensors.items() if name.startswith(VLM)}
    weights = to_ours(tensors, artifact.config.sizes, str(artifact.checkpoint))
    kind = "motion" if parts_of(tensors, str(artifact.checkpoint)) == MOTION else "policy"
    if kind == "policy" and scaling is None:
        raise DataError(f"no dataset statistics at {artifact.folder}; a policy needs its dataset_statistics.json.")
    notes: list[str] = []
    described = description_files(artifact.config, vlm, notes) if vlm_tensors else None
    if kind == "policy" and not vlm_tensors and vlm is None:
        notes.append(
            f"{source} holds no weights of its VLM. Acting will take {settings.model} from the hub, or from $LAMP_MODELS, and "
            "can compare its settings alone; import again with --vlm FOLDER to record which one it is."
        )
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
        if (whole := folder / VLM_FOLDER if described else vlm) is not None:
            _identify(folder, replace(settings, model=str(whole)), artifact.config)
    return Imports(checkpoint=out, kind=kind, notes=tuple(notes))


def _identify(checkpoint: Path, settings: Qwen3VLBackboneConfig, config: ReleasedConfig) -> None:
    """Records in a checkpoint which backbone it is, by the content of its files.

    Raises:
        DataError: Files of the VLM are missing.
        MismatchError: It is no Qwen3-VL, or of another width.
    """
    description, identity = read_description(checkpoint), settings.find()
    if identity.width != config.sizes.vl:
        raise MismatchError(
            f"{settings.model} holds a VLM {identity.width} wide; the released model's is {config.sizes.vl} wide: expected "
            f"{config.base_vlm}."
        )
    described = description.backbone.description | {CONTENT: identity.description[CONTENT]}
    record = replace(description.backbone, key=identity.key, description=described)
    replace(description, backbone=record).write(checkpoint)


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
    step = step if type(step) is int else 0
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
        backbone=backbone_record(config),
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
            backbone=replace(backbone_settings(config), model=vlm.folder, commit=None)
            if vlm.folder
            else backbone_settings(config),
        ),
        data=data,
        step=step,
        averaged=False,
        exactly_reproducible=False,
        code=lamp.version.code_version(),
        packages=lamp.version.package_versions(),
    )


def backbone_settings(config: ReleasedConfig) -> Qwen3VLBackboneConfig:
    """How the release uses its VLM.

    Deviation: the release pads a batch on the left, and takes the padding for real tokens, so that an observation's actions
    depend on what else is in the batch. It is evaluated on one observation at a time, without padding; on the right and masked,
    padding leaves every observation of a batch with what it would get alone.

    Raises:
        ConfigError: The prompt has no place for the instruction.
    """
    return Qwen3VLBackboneConfig(
        model=config.base_vlm,
        commit=config.revision,
        cameras=tuple((name, config.side) for name in CAMERAS),
        prompt=config.prompt or BARE_PROMPT,
        # transformers 4.57, with which the release was trained, gives the last layer's output before the final norm.
        layer=PreNorm(),
        padding=RightPadding(),
        text_tokens=None,
        bfloat16=config.bfloat16,
    )


def backbone_record(config: ReleasedConfig) -> BackboneRecord:
    """Records the VLM by its settings; what its files hold is not known yet."""
    settings = backbone_settings(config)
    return BackboneRecord(
        key=None,
        description=settings.describe(content=None, commit=settings.commit),
        cameras=tuple(CameraInput(name=name, height=RECORDED, width=RECORDED) for name in CAMERAS),
        prompt=settings.prompt,
    )


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
    statistics, sizes = artifact.statistics, artifact.config.sizes
    if statistics is None:
        return None
    if sizes.S <= HEIGHT + 1 or sizes.A < 2:
        raise ConfigError(f"{artifact.folder}: state_dim {sizes.S}, action_dim {sizes.A}; expected LIBERO's 8 and 7.")
    state = ClampedRange(
        low=statistics.state_low,
        high=statistics.state_high,
        switches=(sizes.S - 1,),
        hidden=(HEIGHT,) if artifact.config.mask_z else (),
    )
    actions = ClampedRange(low=statistics.action_low, high=statistics.action_high, switches=(sizes.A - 1,))
    return PolicyScaling(state_transform=RawState(), state=state, actions=actions)
