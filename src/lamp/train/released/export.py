"""`lamp export-released`: one of our checkpoints as the authors' code reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamp.data.normalizers import ClampedRange, RawState
from lamp.errors import MismatchError, MissingDependencyError
from lamp.files import atomic_path, sha256_of
from lamp.flow_matching import Beta
from lamp.json_files import write_json
from lamp.model.guidance import GuidanceConfig
from lamp.model.qwen3_vl import PreNorm
from lamp.model.qwen_processor import BARE_PROMPT
from lamp.model.released.artifact import CONFIG_FILE, MANIFEST_FILE, STATISTICS_FILE
from lamp.model.released.config import ReleasedConfig, to_raw
from lamp.model.released.keys import VLM, to_theirs
from lamp.model.released.sizes import MOTION, POLICY, sizes_of
from lamp.train.checkpoint import checkpoint_folder, load_checkpoint
from lamp.train.checkpoint_metadata import Description, PolicyRecord, read_description
from lamp.train.released.import_release import CAMERAS, HEIGHT, VLM_FOLDER, refuse_used
from lamp.train.released.vlm import read_vlm

NAMES = {"policy": ("pytorch_model.pt", "complete_policy"), "motion": ("motion_expert.pt", "motion_expert")}
"""Of the weights' file, and of what it holds, for each kind of checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Exports:
    """What came of an export."""

    folder: Path
    kind: str
    notes: tuple[str, ...]
    """What the user has to know."""


def export_released(checkpoint: Path, out: Path, *, vlm: Path | None = None) -> Exports:
    """Writes a checkpoint of ours as a folder that the authors' code reads, with a manifest.

    The weights compute the same; how two linear layers in a row share their product is not what it was before an import
    (`lamp.model.released.keys`), and everything but the VLM is in float32.

    Args:
        checkpoint: A policy whose arithmetic the release has, or a Motion Expert.
        vlm: A folder of the VLM's weights, as transformers saves them; None: those in the checkpoint.

    Raises:
        ConfigError: `out` is in use.
        DataError: The checkpoint is damaged.
        MismatchError: The release's code cannot express it; the reasons are listed.
    """
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(f"writing {CONFIG_FILE} needs PyYAML: pip install pyyaml.") from None
    refuse_used(out)
    description = read_description(checkpoint)
    description.check_usable(checkpoint)
    config, statistics = to_config(description), to_statistics(description)
    raw = description.imported.config if description.imported is not None else {}
    model, _ = load_checkpoint(checkpoint)
    parts = MOTION if description.kind == "motion" else POLICY
    tensors = to_theirs(model.state_dict(), config.sizes, parts)
    notes = []
    if description.kind == "policy":
        held = vlm or checkpoint_folder(checkpoint) / VLM_FOLDER
        if held.is_dir():
            tensors |= {f"{VLM}{name}": value for name, value in read_vlm(held).items()}
        else:
            notes.append(
                f"there are no weights of the VLM in {checkpoint}, and the authors' code reads a policy only with them: "
                f"export again with --vlm FOLDER of {config.base_vlm}."
            )
    name, artifact_type = NAMES[description.kind]
    with atomic_path(out) as folder:
        folder.mkdir()
        torch.save({key: value.detach().contiguous().clone() for key, value in tensors.items()}, folder / name)
        text = yaml.safe_dump(to_raw(config, raw), sort_keys=False, allow_unicode=True)
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        if statistics:
            write_json(folder / STATISTICS_FILE, statistics)
        write_json(folder / MANIFEST_FILE, _manifest(folder, name, artifact_type, tensors, description))
    return Exports(folder=out, kind=description.kind, notes=tuple(notes))


def to_config(description: Description) -> ReleasedConfig:
    """Says of a checkpoint what the release's `config.yaml` says.

    Raises:
        MismatchError: The release has no words for it.
    """
    model, flow, backbone = description.model, description.flow, description.backbone
    sizes, seen = sizes_of(model), backbone.description
    if seen.get("kind") != "qwen3_vl":
        raise MismatchError(
            f"this checkpoint's backbone is {seen.get('kind', 'unknown')!r}; a released model has a Qwen3-VL."
        )
    if "lora" in seen:
        raise MismatchError(
            "this checkpoint's backbone has adapters, and the release has none; expected a policy trained without --lora."
        )
    sides = {side for _, side in seen["cameras"]}
    if seen["layer"] != PreNorm.__name__ or len(sides) != 1:
        raise MismatchError(
            f"this checkpoint's backbone has the layer {seen['layer']} and images of {sorted(sides)} px; the release has "
            "PreNorm, and images of one size."
        )
    if flow is None:
        raise MismatchError("this checkpoint says nothing of its scene flow; a released model has one.")
    if description.kind == "policy" and tuple(camera.name for camera in backbone.cameras) != CAMERAS:
        have = ", ".join(camera.name for camera in backbone.cameras)
        raise MismatchError(f"this checkpoint's cameras are {have}; the release has {', '.join(CAMERAS)}.")
    imported, policy = description.imported, description.policy
    return ReleasedConfig(
        sizes=sizes,
        base_vlm=seen["model"],
        revision=imported.vlm.revision if imported else seen["commit"],
        bfloat16=seen["bfloat16"],
        prompt=None if backbone.prompt == BARE_PROMPT else backbone.prompt,
        side=sides.pop(),
        steps=model.solver_steps,
        hidden_at=model.hidden_at,
        dropout=model.guidance.dropout if isinstance(model.guidance, GuidanceConfig) else 0.1,
        # The release's code trains with nothing else; what it samples has no part in acting.
        action_tau=model.action_tau if isinstance(model.action_tau, Beta) else Beta(),
        mask_z=policy is not None and _ranges(policy)[0].hidden == (HEIGHT,),
        bounds_low=flow.bounds.low,
        bounds_high=flow.bounds.high,
    )


def to_statistics(description: Description) -> dict[str, Any]:
    """Says of a checkpoint what the release's `dataset_statistics.json` says; of an imported one, all that it said.

    Raises:
        MismatchError: The release has no such scaling.
    """
    if description.imported is not None:
        return description.imported.statistics
    if description.policy is None:
        return {}
    state, actions = _ranges(description.policy)
    ends = {"state": state, "action": actions}
    return {"libero": {name: {"min": [*ends_of.low], "max": [*ends_of.high]} for name, ends_of in ends.items()}}


def _ranges(policy: PolicyRecord) -> tuple[ClampedRange, ClampedRange]:
    scaling, state, actions = policy.scaling, policy.scaling.state, policy.scaling.actions
    if not isinstance(state, ClampedRange) or not isinstance(actions, ClampedRange):
        kinds = f"{type(state).__name__} for the state and {type(actions).__name__} for the actions"
        raise MismatchError(f"this policy scales with {kinds}; the release with ClampedRange for both.")
    switches = [affine.switches == (affine.width - 1,) for affine in (state, actions)]
    if not isinstance(scaling.state_transform, RawState) or not all(switches):
        raise MismatchError(
            f"this policy has the state transform {type(scaling.state_transform).__name__} and the switches {state.switches} "
            f"and {actions.switches}; the release has RawState, and the last value of either as its switch."
        )
    if state.hidden not in ((), (HEIGHT,)) or actions.hidden:
        raise MismatchError(f"this policy hides the values {state.hidden} of the state; the release none, or {HEIGHT}.")
    return state, actions


def _manifest(
    folder: Path, name: str, artifact_type: str, tensors: dict[str, Tensor], description: Description
) -> dict[str, Any]:
    files = [
        {"name": file.name, "sha256": sha256_of(file), "size": file.stat().st_size} for file in sorted(folder.iterdir())
    ]
    checkpoint = next(record for record in files if record["name"] == name)
    return {
        "artifact_type": artifact_type,
        "checkpoint": checkpoint,
        "checkpoint_sha256": checkpoint["sha256"],
        "files": files,
        "format": "pytorch_state_dict",
        "format_version": 1,
        "model": "LaMP",
        "optimizer_state_included": False,
        "scheduler_state_included": False,
        "optimizer_step": description.step,
        "state_dict": {
            "parameter_count": sum(value.numel() for value in tensors.values()),
            "tensor_count": len(tensors),
        },
        "torch_load_weights_only": True,
        "written_by": f"lamp {description.code}",
    }
