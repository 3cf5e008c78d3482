"""`lamp pretrain`: Stage 1 from nothing to a Motion Expert that others start from, such as `pretrained/libero_object`.

out/data/        motion without actions, its scene flow, features
out/motion/      the run of Stage 1
out/pretrained/  what is passed on: a checkpoint in half precision, and its error on held-out episodes (flow.json)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lamp.collect.collect import collect
from lamp.data.feature_cache.shards import picture_hashes
from lamp.files import locked
from lamp.progress import say
from lamp.recipes.kinds import PretrainingRecipe
from lamp.sceneflow.build import build
from lamp.train.backbones import ensure_features
from lamp.train.checkpoint import Expected, load_checkpoint, save_checkpoint
from lamp.train.checkpoint_metadata import read_description
from lamp.train.flow_metrics import FILE_NAME as FLOW_ERRORS
from lamp.train.model_card import Publication
from lamp.train.publishing import write_card
from lamp.train.train_motion import evaluate_flow, train_motion


def pretrain(recipe: PretrainingRecipe, out: Path) -> Path:
    """Collects, trains and passes on a Motion Expert; an interrupted run goes on where it stopped.

    Returns:
        The folder that is passed on: give it to `lamp train policy --motion`.

    Raises:
        DataError: Another process is at work in the folder.
    """
    with locked(out / ".lock", f"a run is at work in {out} already; wait for it, or choose another --out"):
        data, motion, passed_on = out / "data", out / "motion", out / "pretrained"
        say(f"{recipe.name} into {out}: collect, flow, features, train motion")
        collect(replace(recipe.collect, out=data))
        build(replace(recipe.flow, data=data), pictures=picture_hashes(data, recipe.flow.cameras))
        ensure_features(data, recipe.backbone)
        train_motion(recipe.motion, data, motion)
        if not _is_published(motion, passed_on):
            pass_on(motion, passed_on)
            evaluate_flow(passed_on, data, frames=recipe.motion.final_samples).write(passed_on / FLOW_ERRORS)
        return passed_on


def _is_published(run: Path, out: Path) -> bool:
    """Whether a run's weights are there in half precision, with their errors, which are written last."""
    if not (out / FLOW_ERRORS).is_file():
        return False
    trained, there = read_description(run), read_description(out)
    return replace(there, weights_sha256=trained.weights_sha256) == trained


def pass_on(run: Path, out: Path) -> None:
    """Writes a Stage-1 run's weights with a card: in half precision, and without what continues the run."""
    model, description = load_checkpoint(run, expected=Expected(kind="motion"))
    save_checkpoint(out, description, {name: value.half() for name, value in model.state_dict().items()})
    write_card(out, Publication(licence="mit"))
