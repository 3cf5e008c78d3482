"""The commands of the line: each reads its flags and calls the function that does the work, imported only then."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from lamp.errors import ConfigError, DataError, MismatchError, unknown
from lamp.flags import parse, parse_beside, value_of

if TYPE_CHECKING:
    from lamp.benchmark.evaluating import RunSettings
    from lamp.data.augmentation import Augmentation
    from lamp.data.embodiment import Embodiment
    from lamp.recipes import Recipe, TrainingRecipe
    from lamp.train.backbones import BackboneConfig
    from lamp.train.caching import CacheRequest
    from lamp.train.configs import LoopConfig, MixedIn, MotionTraining, PolicyTraining
    from lamp.train.running import RunStage

ANY_RECIPE = "demo"
"""Fills the help text of a command that needs a recipe and was given none."""


def _with_flag(arguments: Sequence[str], flag: str) -> Sequence[str]:
    """Lets the one folder a command is about stand without its flag: `lamp flow build DIR`."""
    if arguments and not arguments[0].startswith("-"):
        return [flag, *arguments]
    return arguments


@dataclass(frozen=True, kw_only=True)
class CollectFlags:
    """Records demonstrations of LIBERO tasks with a scripted expert; a stopped collection goes on where it was."""

    recipe: str | None = None
    """Where the other flags' defaults come from: a name that `lamp recipe list` shows."""


def _collect(arguments: Sequence[str]) -> None:
    from lamp.collect.collecting import collect
    from lamp.collect.jobs import CollectConfig

    settings = None
    if name := value_of("--recipe", arguments):
        _need("--out", arguments, "collect")
        settings = _experiment(name).collect
    _, config = parse_beside(CollectFlags, CollectConfig, arguments, "collect", settings)
    print(collect(config))


@dataclass(frozen=True, kw_only=True)
class FlowFlags:
    """Computes a dataset's 3-D scene flow from its recorded simulation; a stopped build goes on where it was."""

    recipe: str | None = None
    """Where the other flags' defaults come from: a name that `lamp recipe list` shows."""


def _flow_build(arguments: Sequence[str]) -> None:
    from lamp.sceneflow.building import FlowBuildConfig, build

    settings, words = None, _with_flag(arguments, "--data")
    if name := value_of("--recipe", arguments):
        _need("--data", words, "flow build")
        settings = _experiment(name).flow
    _, config = parse_beside(FlowFlags, FlowBuildConfig, words, "flow build", settings)
    build(config)


def _need(flag: str, arguments: Sequence[str], command: str) -> None:
    """Asks for the folder, which a recipe cannot know.

    Raises:
        ConfigError: It is not among the arguments.
    """
    if value_of(flag, arguments) is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError(f"Missing from lamp {command}: {flag} PATH (lamp {command} --help lists the flags)")


def _experiment(name: str) -> Recipe:
    from lamp.recipes import experiment

    return experiment(name)


def _training(name: str) -> Recipe | TrainingRecipe:
    from lamp.recipes import training

    return training(name)


@dataclass(frozen=True, kw_only=True)
class CacheFlags:
    """Computes the frozen backbone's tokens of a dataset's images and instructions; `lamp train` does the same if needed."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """The datasets, each DIR or DIR=EMBODIMENT."""
    recipe: str = "demo"
    """The recipe whose backbone it is; its settings can be changed by their own flags."""
    embodiment: str | None = None
    """How datasets record their robot where they do not say: lamp, libero, bridge, droid ..., or a JSON file; by default, as the
    recipe says (docs/data.md)."""
    out: Path | None = None
    """The folder for the caches of all datasets, `--features` of a training; by default each is in its dataset."""
    motion: Path | None = None
    """Stage 1's checkpoint or run: also computes z_m, --cached-hidden-draws of each frame. All settings of the training that is
    to read them then have flags here."""
    processes: int | None = None
    """Worker processes; by default one a core, or for a large backbone one a GPU. The same command may run several times at
    once, here or where else the folder is mounted: each then makes a share."""
    devices: tuple[str, ...] = ()
    """Where the workers compute, in turn: cuda:0 cuda:1 ..."""
    storage: Literal["default", "float16", "bfloat16", "float32"] = "default"
    """How tokens are kept: float16 by default for the embedded backbone, the backbone's own format for a large one."""
    leave_out_corrupt: bool = False
    """Leave out episodes whose pictures cannot be read, and name them, rather than stop; training then leaves them out too."""
    check: bool = False
    """Compute nothing: read what is there, compare it with its checksums and the data, and name every fault; exit code 1 if
    there is one."""
    json: bool = False
    """With --check, print JSON."""


def _cache_features(arguments: Sequence[str]) -> None:
    from lamp.train.caching import check_caches, fill_caches

    flags, request = _cache_request(arguments)
    if not flags.check:
        for folder in fill_caches(request):
            print(f"{folder} is complete (lamp info {folder})")
        return
    from lamp.info import to_text

    found = [report.to_json() for report in check_caches(request)]
    print(json.dumps(found, indent=2) if flags.json else "\n".join(map(to_text, found)))
    if not all(report["ok"] for report in found):
        raise SystemExit(1)


def _cache_request(arguments: Sequence[str]) -> tuple[CacheFlags, CacheRequest]:
    from lamp.data.filling import Workers
    from lamp.data.stored_images import LeaveOut, Refuse
    from lamp.train.backbones import Caching
    from lamp.train.caching import CacheRequest
    from lamp.train.configs import PolicyTraining, Seen

    policy, motion = (
        _training(value_of("--recipe", arguments) or CacheFlags.recipe).policy,
        value_of("--motion", arguments),
    )
    settings = Seen(backbone=policy.backbone, augmentation=policy.augmentation)
    if motion is not None:
        settings = _following(policy, Path(motion))
    kind = PolicyTraining if motion is not None else Seen
    flags, settings = parse_beside(CacheFlags, kind, arguments, "cache features", settings)
    processes, on_corrupt = flags.processes or len(flags.devices), LeaveOut() if flags.leave_out_corrupt else Refuse()
    workers = Workers(processes=processes, devices=flags.devices) if processes else None
    return flags, CacheRequest(
        datasets=tuple(_mixed_in(text, flags.embodiment, policy.embodiment) for text in flags.data),
        settings=settings,
        motion=flags.motion,
        root=flags.out,
        caching=Caching(workers=workers, storage=flags.storage, on_corrupt=on_corrupt),
    )


def _embodiment(name: str | None) -> Embodiment:
    from lamp.data.embodiment import OWN, embodiment

    return OWN if name is None else embodiment(name)


def _ensure_features(
    data: Path,
    config: BackboneConfig,
    embodiment: Embodiment,
    *,
    token_width: int | None = None,
    augmentation: Augmentation | None = None,
    root: Path | None = None,
) -> None:
    """Completes what a training reads; what is stored and is not what it asks for, it refuses."""
    from lamp.data.augmentation import NO_AUGMENTATION
    from lamp.train.backbones import Caching, ensure_features

    ensure_features(
        embodiment.open(data),
        config,
        token_width=token_width,
        augmentation=augmentation or NO_AUGMENTATION,
        root=root,
        caching=Caching(refresh=False),
    )


@dataclass(frozen=True, kw_only=True)
class MotionFlags:
    """Stage 1: trains the Motion Expert on the dataset's scene flow."""

    recipe: str
    """Where all other settings come from: a name that `lamp recipe list` shows, or a file of `lamp recipe fit`; each can be
    changed by its own flag."""
    data: Path
    """The dataset."""
    out: Path
    """The run's folder; an unfinished run in it is continued."""
    embodiment: str | None = None
    """How the dataset records its robot: lamp, libero, bridge, droid ..., or a JSON file; by default, as the recipe says
    (docs/data.md)."""
    fresh: bool = False
    """Start again, and remove an earlier run."""
    sharding: Literal["replicated", "full", "deepspeed"] | None = None
    """How the weights lie on the processes that a launcher has started (docs/training.md); by default, as the recipe says."""
    features: Path | None = None
    """The folder that feature caches are in, `--out` of `lamp cache features`; by default, the datasets'."""
    track: tuple[str, ...] = ()
    """Trackers besides metrics.jsonl and TensorBoard: wandb, trackio, each KIND or KIND=PROJECT (docs/training.md)."""
    plan: bool = False
    """Say what the run will need (memory, steps, time, disk), and train nothing."""
    json: bool = False
    """Print the plan as one JSON object."""


def _train_motion(arguments: Sequence[str]) -> None:
    from lamp.recipes import Recipe
    from lamp.train.configs import MotionTraining
    from lamp.train.motion import train_motion
    from lamp.train.running import run_stage

    chosen = _training(value_of("--recipe", arguments) or ANY_RECIPE)
    if chosen.motion is None:
        raise ConfigError(f"recipe {chosen.name!r} has no motion prior to train; `lamp train policy` is all it needs")
    flags, training = parse_beside(MotionFlags, MotionTraining, arguments, "train motion", chosen.motion)
    if isinstance(chosen, Recipe) and value_of("--flow-stride", arguments) is None:
        training = replace(training, flow_stride=_flow_stride(chosen, flags.data))
    training = replace(training, embodiment=_embodiment(flags.embodiment)) if flags.embodiment else training
    training = replace(training, loop=_tracked(_sharded(training.loop, flags.sharding), flags))

    def train(now: LoopConfig, run: RunStage) -> None:
        planned = replace(training, loop=now)
        train_motion(planned, flags.data, flags.out, fresh=flags.fresh, features=flags.features, run=run)

    if flags.plan:
        return _plan(flags, training.loop, train)
    _prepare(flags.data, training, flags.features)
    train(training.loop, run_stage)


def _tracked(loop: LoopConfig, flags: MotionFlags) -> LoopConfig:
    """
    Raises:
        ConfigError: A tracker is unknown, or --json is given without --plan.
        MissingDependencyError: A tracker's package is not installed.
    """
    from lamp.train.tracking import check_trackers, tracker

    if flags.json and not flags.plan:
        raise ConfigError("--json given without --plan; expected both: only a plan is printed as JSON")
    named = [tracker(text) for text in flags.track]
    trackers = (*loop.trackers, *(one for one in named if one not in loop.trackers))
    check_trackers(trackers)
    return replace(loop, trackers=trackers)


def _plan(flags: MotionFlags, loop: LoopConfig, train: Callable[[LoopConfig, RunStage], None]) -> None:
    """Prints what a training would need; where its device is not here, it is built on the CPU, and no step is taken."""
    from lamp.train.plan import to_text
    from lamp.train.planning import Planner
    from lamp.train.running import is_here

    planner = Planner(loop.device)
    train(loop if is_here(loop.device) else replace(loop, device="cpu"), planner)
    if planner.plan is not None and planner.main:
        print(json.dumps(asdict(planner.plan), indent=2) if flags.json else to_text(planner.plan))


def _prepare(data: Path, training: MotionTraining | PolicyTraining, root: Path | None) -> None:
    """Sees to it that the training can start, what takes least first; of several processes, the main one does."""
    from lamp.train.adapters import lora_of
    from lamp.train.processes import processes
    from lamp.train.running import check_device

    check_device(training.loop.device)

    def features() -> None:
        if lora_of(training.backbone) is not None:
            print("the backbone is trained along: its tokens are computed at every step, not cached", file=sys.stderr)
            return
        width, views = training.model.token_width, getattr(training, "augmentation", None)
        _ensure_features(data, training.backbone, training.embodiment, token_width=width, augmentation=views, root=root)
        for part in getattr(training, "also", ()):
            _ensure_features(Path(part.data), training.backbone, part.embodiment, augmentation=views, root=root)

    processes(training.loop.device).only_main(features)


def _with_lora(training: PolicyTraining, rank: int | None) -> PolicyTraining:
    """
    Raises:
        ConfigError: The recipe's backbone can have no adapters.
    """
    from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
    from lamp.model.qwen_lora import LoRA

    backbone = training.backbone
    if rank is None:
        return training
    if not isinstance(backbone, Qwen3VLBackboneConfig):
        raise ConfigError(
            f"--lora {rank} given, and the recipe's backbone is the small one; expected one with Qwen3-VL."
        )
    return replace(training, backbone=replace(backbone, lora=replace(backbone.lora or LoRA(), rank=rank)))


def _sharded(loop: LoopConfig, name: str | None) -> LoopConfig:
    from lamp.train.sharding import DeepSpeed, FullySharded, Replicated

    kinds = {"replicated": Replicated, "full": FullySharded, "deepspeed": DeepSpeed}
    # What the recipe says of its own kind of sharding, or was said by flags, stays.
    return loop if name is None or isinstance(loop.sharding, kinds[name]) else replace(loop, sharding=kinds[name]())


def _flow_stride(chosen: Recipe, data: Path) -> int:
    """Stored flow steps that make one of the recipe's: a store may be finer than the one that the recipe builds.

    Raises:
        DataError: There is no dataset, or no scene flow of it.
        MismatchError: The stored steps do not add up to the recipe's.
    """
    from lamp.sceneflow.building import FOLDER
    from lamp.sceneflow.store import SceneFlowStore

    if not data.is_dir():
        raise DataError(
            f"no dataset at {data}: there is no such folder; expected one of `lamp collect`, or in LeRobot's format"
        )
    store = SceneFlowStore(data / FOLDER)
    frames, stored = chosen.flow.stride * chosen.motion.flow_stride, store.description.sampling.stride
    if frames % stored:
        raise MismatchError(
            f"{store.path} has a flow step every {stored} frames, the recipe {chosen.name} one every {frames}; "
            f"build it again with `lamp flow build {data} --recipe {chosen.name} --overwrite`, or give --flow-stride"
        )
    return frames // stored


@dataclass(frozen=True, kw_only=True)
class PolicyFlags(MotionFlags):
    """Stage 2: trains the guidance and the Action Expert, or, without --motion, a policy that has no motion prior."""

    motion: Path | None = None
    """Stage 1's checkpoint or run."""
    also: tuple[str, ...] = ()
    """Further datasets, each DIR or DIR=EMBODIMENT, with normalisers of their own; --weights says how often each comes up."""
    lora: int | None = None
    """Train adapters of this rank in Qwen3-VL along (docs/training.md); the feature cache is of no use then."""


def _mixed_in(text: str, named: str | None = None, otherwise: Embodiment | None = None) -> MixedIn:
    from lamp.train.configs import MixedIn

    folder, _, name = text.rpartition("=") if "=" in text else (text, "", "")
    chosen = name or named
    return MixedIn(data=folder, embodiment=otherwise if otherwise and not chosen else _embodiment(chosen))


def _train_policy(arguments: Sequence[str]) -> None:
    from lamp.train.configs import PolicyTraining
    from lamp.train.policy import train_policy
    from lamp.train.processes import processes
    from lamp.train.running import run_stage

    chosen = _training(value_of("--recipe", arguments) or ANY_RECIPE)
    given = value_of("--motion", arguments)
    motion = None if given is None else _checkpoint(Path(given))
    settings = chosen.without_motion if motion is None else _following(chosen.policy, motion)
    flags, training = parse_beside(PolicyFlags, PolicyTraining, arguments, "train policy", settings)
    if flags.also:
        training = replace(training, also=tuple(_mixed_in(text) for text in flags.also))
    training = replace(training, embodiment=_embodiment(flags.embodiment)) if flags.embodiment else training
    loop = _tracked(_sharded(training.loop, flags.sharding), flags)
    training = _with_lora(replace(training, loop=loop), flags.lora)

    def train(now: LoopConfig, run: RunStage) -> None:
        planned = replace(training, loop=now)
        train_policy(planned, flags.data, flags.out, motion, fresh=flags.fresh, features=flags.features, run=run)

    if flags.plan:
        return _plan(flags, loop, train)
    _prepare(flags.data, training, flags.features)
    if motion is None and processes(training.loop.device).main:
        print("no --motion CHECKPOINT: training a policy without the motion prior", file=sys.stderr)
    train(loop, run_stage)


def _following(policy: PolicyTraining, motion: Path) -> PolicyTraining:
    """Takes over the grid and horizon of a motion checkpoint that `lamp resize` wrote."""
    from lamp.train.resizing import following

    if not motion.exists():  # the training will say so
        return policy
    model = following(policy.model, motion)
    if model != policy.model and model.motion is not None:
        rows, columns = model.motion.grid
        print(f"as {motion} was resized: {rows}x{columns} points, {model.motion.horizon} flow steps", file=sys.stderr)
    return replace(policy, model=model)


@dataclass(frozen=True, kw_only=True)
class ResizeFlags:
    """Carries the weights of a motion checkpoint over to another grid or horizon; Stage 2 takes the result as it is."""

    source: tyro.conf.Positional[Path]
    """Stage 1's checkpoint or run."""
    out: tyro.conf.Positional[Path]
    """The new checkpoint's folder."""
    grid: tuple[int, ...] = ()
    """Rows and columns of grid points, or one number for both; as many as before by default."""
    horizon: int | None = None
    """Flow steps; as many as before by default."""
    pace: float = 1.0
    """Old flow steps in each new one: 0.5 with twice the horizon sees the same span in finer steps."""

    def __post_init__(self) -> None:
        if len(self.grid) > 2:
            raise ConfigError(f"--grid {' '.join(map(str, self.grid))}: expected one number, or rows and columns")
        if not self.grid and self.horizon is None and self.pace == 1.0:
            raise ConfigError("nothing to resize: expected --grid, --horizon or --pace")


def _resize(arguments: Sequence[str]) -> None:
    flags = parse(ResizeFlags, arguments, "resize")
    from lamp.train.resizing import resize_checkpoint

    grid = (flags.grid[0], flags.grid[-1]) if flags.grid else None
    found = resize_checkpoint(_checkpoint(flags.source), flags.out, grid=grid, horizon=flags.horizon, pace=flags.pace)
    assert found.flow is not None
    rows, columns = found.flow.grid
    steps = f"{found.flow.horizon} flow steps of {found.flow.stride} frames"
    print(f"{flags.out}: {rows}x{columns} points, {steps} (lamp info {flags.out})")


def _checkpoint(path: Path) -> Path:
    """The folder of a checkpoint that may be a hub id."""
    from lamp.train.publishing import find_checkpoint

    return find_checkpoint(path)


def _evaluate(arguments: Sequence[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        known = [name.split()[1] for name in COMMANDS if name.startswith("evaluate ")]
        raise unknown("benchmark", arguments[0], known)
    _evaluate_libero(arguments)


def _evaluate_libero(arguments: Sequence[str]) -> None:
    from lamp.benchmark.evaluating import EvaluateConfig

    _evaluated(parse(EvaluateConfig, arguments, "evaluate libero"))


def _evaluate_plus(arguments: Sequence[str]) -> None:
    from lamp.benchmark.plus import PlusConfig, listing, listing_text

    config = parse(PlusConfig, arguments, "evaluate libero_plus")
    if config.list:
        found = listing(config)
        print(json.dumps(found, indent=2) if config.json else listing_text(found))
    else:
        _evaluated(config)


def _evaluated(config: RunSettings) -> None:
    from lamp.benchmark.evaluating import evaluate
    from lamp.view.overlay import ForesightArtist

    found = {name: _checkpoint(path) for name in ("checkpoint", "against") if (path := getattr(config, name))}
    print(evaluate(replace(config, **found), artist=ForesightArtist()).text)


def _evaluate_simpler(arguments: Sequence[str]) -> None:
    from lamp.benchmark.simpler import SimplerConfig, evaluate_simpler
    from lamp.view.overlay import ForesightArtist

    config = parse(SimplerConfig, arguments, "evaluate simpler")
    found = {name: _checkpoint(path) for name in ("checkpoint", "against") if (path := getattr(config, name))}
    print(evaluate_simpler(replace(config, **found), artist=ForesightArtist()).text)


def _merge_evaluations(arguments: Sequence[str]) -> None:
    from lamp.benchmark.sharding import MergeConfig, merge

    config = parse(MergeConfig, arguments, "merge-evaluations")
    print(f"{merge(config)} episodes in {config.out}")


def _view(arguments: Sequence[str]) -> None:
    from lamp.view.foresight import ViewConfig, view

    config = parse(ViewConfig, _with_flag(arguments, "--data"), "view")
    view(replace(config, checkpoint=_checkpoint(config.checkpoint)) if config.checkpoint else config)


def _show_perturbations(arguments: Sequence[str]) -> None:
    from lamp.view.perturbations import SheetConfig, sheet

    print(sheet(parse(SheetConfig, arguments, "show perturbations")))


def _score(arguments: Sequence[str]) -> None:
    from lamp.benchmark.trials import ScoreConfig, score

    print(score(parse(ScoreConfig, _with_flag(arguments, "--out"), "score")))


def _report(arguments: Sequence[str]) -> None:
    from lamp.view.report import ReportConfig, report

    print(report(parse(ReportConfig, _with_flag(arguments, "--run"), "report")))


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Runs a recipe from nothing to a report: collect, scene flow, both stages, evaluation; an interrupted run goes on."""

    out: Path
    """The folder of everything."""
    recipe: str = "demo"
    """A name that `lamp recipe list` shows."""


def _demo(arguments: Sequence[str]) -> None:
    flags = parse(DemoFlags, arguments, "demo")
    from lamp.experiment import run

    run(_experiment(flags.recipe), flags.out)


@dataclass(frozen=True, kw_only=True)
class InfoFlags:
    """Says what a folder is: dataset, scene-flow store, feature cache, training run, checkpoint or evaluation."""

    path: tyro.conf.Positional[Path]
    """The folder, or a checkpoint's id on the hub, OWNER/NAME or OWNER/NAME@REVISION: its weights are not fetched."""
    json: bool = False
    """Print JSON."""


def _info(arguments: Sequence[str]) -> None:
    flags = parse(InfoFlags, arguments, "info")
    from lamp.info import describe, to_text

    description = describe(flags.path)
    print(json.dumps(description, indent=2, ensure_ascii=False) if flags.json else to_text(description))


@dataclass(frozen=True, kw_only=True)
class PullFlags:
    """Copies a checkpoint from the Hugging Face hub to a folder, once it is found to be whole; pickles are refused."""

    source: tyro.conf.Positional[str]
    """OWNER/NAME, or OWNER/NAME@REVISION."""
    out: tyro.conf.Positional[Path]
    """The folder."""
    revision: str | None = None
    """The hub's branch, tag or commit."""


def _pull(arguments: Sequence[str]) -> None:
    flags = parse(PullFlags, arguments, "pull")
    from lamp.train.publishing import pull

    out = pull(flags.source, flags.out, flags.revision)
    print(f"{out}: a checkpoint (lamp info {out})")


@dataclass(frozen=True, kw_only=True)
class PushFlags:
    """Publishes a checkpoint on the Hugging Face hub, with a card made from its own record."""

    checkpoint: tyro.conf.Positional[Path]
    """Its folder, or the run that holds it."""
    repository: tyro.conf.Positional[str]
    """OWNER/NAME, made where there is none, or OWNER/NAME@BRANCH."""
    results: tuple[Path, ...] = ()
    """Folders of `lamp evaluate` with this checkpoint, finished, for the card."""
    licence: str | None = None
    """Of the weights, by the hub's identifier: mit, apache-2.0, cc-by-4.0 ..."""
    datasets: tuple[str, ...] = ()
    """Hub ids of what it was trained on, for the card."""
    private: bool = False
    """Make a new repository for its owner only."""
    message: str | None = None
    """Of the commit."""
    dry_run: bool = False
    """Print the card and what would be published, and ask no hub."""


def _push(arguments: Sequence[str]) -> None:
    flags = parse(PushFlags, arguments, "push")
    from lamp.benchmark.measured import measured
    from lamp.train.card import Publication
    from lamp.train.description import checkpoint_folder
    from lamp.train.publishing import card_of, published_files, push

    folder = checkpoint_folder(flags.checkpoint)
    results = tuple(result for evaluation in flags.results for result in measured(evaluation, folder))
    about = Publication(
        licence=flags.licence, datasets=flags.datasets, results=results, repository=flags.repository.partition("@")[0]
    )
    if flags.dry_run:
        print(card_of(folder, about))
        for name, file in published_files(folder).items():
            print(f"{name}: {file.stat().st_size:,} bytes", file=sys.stderr)
        return
    print(push(folder, flags.repository, about, private=flags.private, message=flags.message))


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """Lists the recipes, each with what it is for."""


def _recipe_list(arguments: Sequence[str]) -> None:
    parse(ListFlags, arguments, "recipe list")
    from lamp.recipes import RECIPES

    width = max(map(len, RECIPES))
    for name, build in RECIPES.items():
        print(f"{name:<{width}}  {build().summary}")


def _recipe_fit(arguments: Sequence[str]) -> None:
    from lamp.recipes.fitting import FitConfig, fit

    config = parse(FitConfig, _with_flag(arguments, "--data"), "recipe fit")
    made, told = fit(config, _training(config.like))
    print(f"{told}\n{config.out}: {made.summary}. Read it, change what you like, and give it to any --recipe.")


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Prints a recipe's full configuration, and how many parameters its models have."""

    name: tyro.conf.Positional[str]
    """The recipe."""
    json: bool = False
    """Print the configuration as JSON."""


def _recipe_show(arguments: Sequence[str]) -> None:
    flags = parse(ShowFlags, arguments, "recipe show")
    from lamp.configuration import to_json
    from lamp.info import to_text
    from lamp.model.counting import expected_parameters
    from lamp.recipes import recipe

    made = recipe(flags.name)
    if flags.json:
        print(json.dumps(to_json(made), indent=2, ensure_ascii=False))
        return
    counts = {name: expected_parameters(model) for name, model in made.models.items()}
    print(to_text({**to_json(made), "parameters": counts}))


@dataclass(frozen=True, kw_only=True)
class ImportFlags:
    """Makes a checkpoint of the authors' released LaMP-LIBERO or LaMP-Motion-Expert, with all its conventions."""

    source: tyro.conf.Positional[str]
    """A folder with config.yaml, dataset_statistics.json and one .pt, or a hub id such as summerwang11/LaMP-LIBERO."""
    out: tyro.conf.Positional[Path]
    """The new checkpoint's folder."""
    revision: str | None = None
    """The hub's branch or commit."""
    vlm: Path | None = None
    """The VLM's folder: its config.json, tokenizer.json and preprocessor_config.json, and its weights where the release has none.
    By default, the hub is asked for the VLM that config.yaml names."""


def _import_released(arguments: Sequence[str]) -> None:
    flags = parse(ImportFlags, arguments, "import-released")
    from lamp.train.released import import_released

    found = import_released(flags.source, flags.out, revision=flags.revision, vlm=flags.vlm)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{found.checkpoint}: a {found.kind} checkpoint (lamp info {found.checkpoint})")


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Writes a checkpoint as the authors' code reads it: config.yaml, dataset_statistics.json, one .pt and a manifest."""

    checkpoint: tyro.conf.Positional[Path]
    """One that was imported, or whose model and scaling are the release's."""
    out: tyro.conf.Positional[Path]
    """The new folder."""
    vlm: Path | None = None
    """A folder with the VLM's weights as transformers saves them; by default, those that an import has kept."""


def _export_released(arguments: Sequence[str]) -> None:
    flags = parse(ExportFlags, arguments, "export-released")
    from lamp.train.released import export_released

    found = export_released(_checkpoint(flags.checkpoint), flags.out, vlm=flags.vlm)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{found.folder}: a released {found.kind}")


@dataclass(frozen=True, kw_only=True)
class CheckFlags:
    """Computes the golden vectors of a file with released weights, and compares: exit code 1 beyond 1e-4."""

    file: tyro.conf.Positional[Path]
    """Weights (weights.*), inputs and outputs (golden.*) in safetensors, with the sizes in the metadata's `config`."""


def _check_released(arguments: Sequence[str]) -> None:
    flags = parse(CheckFlags, arguments, "check-released")
    from lamp.model.released.golden import TOLERANCE, check

    errors = check(flags.file)
    width = max(map(len, errors))
    for name, error in errors.items():
        print(f"golden.{name:<{width}}  {error:.3g}")
    # Written so that a NaN, which compares with nothing, fails too.
    failing = [name for name, error in errors.items() if not error <= TOLERANCE]
    if failing:
        print(f"beyond {TOLERANCE}: {', '.join(failing)}", file=sys.stderr)
        raise SystemExit(1)


def _bench_infer(arguments: Sequence[str]) -> None:
    from lamp.bench.infer import InferConfig, bench_infer, to_text

    config = parse(InferConfig, arguments, "bench infer")
    result = bench_infer(config)
    print(json.dumps(asdict(result), indent=2) if config.json else to_text(result))


def _bench_evaluate(arguments: Sequence[str]) -> None:
    from lamp.bench.evaluating import EvaluationBench, bench_evaluate, to_text

    config = parse(EvaluationBench, arguments, "bench evaluate")
    figures = bench_evaluate(config)
    print(json.dumps(figures, indent=2) if config.json else to_text(figures))


def _bench_train_step(arguments: Sequence[str]) -> None:
    from lamp.bench.train_step import TrainStepConfig, bench_train_step, to_text

    config = parse(TrainStepConfig, arguments, "bench train-step")
    result = bench_train_step(config)
    print(json.dumps(asdict(result), indent=2) if config.json else to_text(result))


def _serve(arguments: Sequence[str]) -> None:
    from lamp.serve.config import ServeConfig
    from lamp.serve.server import serve
    from lamp.view.overlay import ForesightArtist

    config = parse(ServeConfig, arguments, "serve")
    serve(replace(config, checkpoint=_checkpoint(config.checkpoint)), artist=ForesightArtist())


@dataclass(frozen=True, kw_only=True)
class RecordingFlags:
    """Makes a LeRobot dataset of what a robot or simulator recorded; again, it takes up what was recorded since."""

    recording: tyro.conf.Positional[Path]
    """The recorder's folder."""
    out: Path
    """The dataset."""
    robot_type: str = "panda"
    """As written in the dataset's description."""
    successes_only: bool = False
    """Leave out episodes that nobody called a success."""


def _import_recording(arguments: Sequence[str]) -> None:
    flags = parse(RecordingFlags, arguments, "import-recording")
    from lamp.data.recordings import import_recording

    found = import_recording(
        flags.recording, flags.out, robot_type=flags.robot_type, successes_only=flags.successes_only
    )
    for line in found.skipped:
        print(f"left out {line}", file=sys.stderr)
    print(f"{flags.out}: {found.episodes} new episodes, {found.frames} frames")


@dataclass(frozen=True, kw_only=True)
class ServeBenchFlags:
    """Measures the policy server under many clients on loopback; every reply is checked against its request."""

    json: bool = False
    """Print JSON."""


def _bench_serve(arguments: Sequence[str]) -> None:
    from lamp.bench.serving import ServeBench, bench_serving, summary

    flags, bench = parse_beside(ServeBenchFlags, ServeBench, arguments, "bench serve")
    figures = bench_serving(bench)
    print(json.dumps(figures, indent=2) if flags.json else summary(figures))
    if figures["wrong_replies"] or figures["lost_replies"] or figures["errors"]:
        raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class DataCheckFlags:
    """Reads a whole LeRobot dataset, v2.0, v2.1 or v3.0, and reports every fault it finds: exit code 1 if there is one."""

    data: tyro.conf.Positional[Path]
    """The dataset: a folder, or a hub id."""
    workers: int = 1
    """Processes that read."""
    quick: bool = False
    """Count the videos' pictures without decoding them."""
    json: bool = False
    """Print JSON."""


def _data_check(arguments: Sequence[str]) -> None:
    flags = parse(DataCheckFlags, arguments, "data check")
    from lamp.data.check import check_dataset

    found = check_dataset(flags.data, workers=flags.workers, quick=flags.quick)
    print(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if flags.json else found.to_text())
    if not found.ok:
        raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class DataBenchFlags:
    """Measures how many samples a second the loader gives: from videos, from decoded frames, from cached features."""

    data: Path | None = None
    """The dataset; by default a small one is made up."""
    recipe: str = "demo"
    """The recipe whose backbone encodes."""
    workers: int = 2
    """Processes that load."""
    batch_size: int = 16
    """Samples a batch."""
    seconds: float = 10.0
    """How long to measure each way. [s]"""
    json: bool = False
    """Print JSON."""


def _bench_data(arguments: Sequence[str]) -> None:
    flags = parse(DataBenchFlags, arguments, "bench data")
    from lamp.bench.loading import measure_loading
    from lamp.info import to_text

    found = measure_loading(
        _training(flags.recipe).backbone,
        flags.data,
        workers=flags.workers,
        batch_size=flags.batch_size,
        seconds=flags.seconds,
    )
    print(json.dumps(found, ensure_ascii=False) if flags.json else to_text(found))


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the line: what it is for, and what runs it."""

    summary: str
    run: Callable[[Sequence[str]], None]


COMMANDS: dict[str, Command] = {
    "demo": Command(summary="run everything once, small, from demonstrations to a report", run=_demo),
    "collect": Command(summary="record demonstrations of LIBERO tasks with a scripted expert", run=_collect),
    "flow build": Command(summary="compute the 3-D scene flow of a dataset", run=_flow_build),
    "cache features": Command(summary="compute the frozen backbone's features of a dataset", run=_cache_features),
    "data check": Command(summary="find every fault of a LeRobot dataset", run=_data_check),
    "bench data": Command(summary="measure the loader: videos, decoded frames, cached features", run=_bench_data),
    "train motion": Command(summary="Stage 1: the Motion Expert, on scene flow", run=_train_motion),
    "train policy": Command(summary="Stage 2: guidance and Action Expert, on actions", run=_train_policy),
    "resize": Command(summary="carry a Motion Expert's weights over to another grid or horizon", run=_resize),
    "evaluate": Command(summary="run a policy in the simulator and count successes: `evaluate libero`", run=_evaluate),
    "evaluate libero": Command(summary="run a policy on LIBERO, as it is or perturbed", run=_evaluate_libero),
    "evaluate libero_plus": Command(summary="run a policy on LIBERO-Plus, or list its tasks", run=_evaluate_plus),
    "evaluate simpler": Command(summary="run a policy on SimplerEnv's WidowX tasks", run=_evaluate_simpler),
    "merge-evaluations": Command(summary="join the shards of an evaluation", run=_merge_evaluations),
    "serve": Command(summary="answer robots and simulators over the network", run=_serve),
    "bench serve": Command(summary="measure the policy server under many clients", run=_bench_serve),
    "import-recording": Command(summary="make a dataset of what a robot recorded", run=_import_recording),
    "pull": Command(summary="copy a checkpoint from the Hugging Face hub", run=_pull),
    "push": Command(summary="publish a checkpoint on the Hugging Face hub", run=_push),
    "view": Command(summary="draw predicted beside true scene flow", run=_view),
    "show perturbations": Command(summary="draw what plus-style perturbations do to a scene", run=_show_perturbations),
    "score": Command(summary="write down how far a trial on a real robot came", run=_score),
    "report": Command(summary="write the HTML report of a run", run=_report),
    "import-released": Command(summary="make a checkpoint of the authors' released weights", run=_import_released),
    "export-released": Command(summary="write a checkpoint as the authors' code reads it", run=_export_released),
    "check-released": Command(summary="compare golden vectors of released weights with ours", run=_check_released),
    "bench infer": Command(summary="measure what a chunk of actions costs, stage by stage", run=_bench_infer),
    "bench evaluate": Command(summary="measure the evaluation's runner: episodes an hour", run=_bench_evaluate),
    "bench train-step": Command(summary="measure what a training step costs, part by part", run=_bench_train_step),
    "info": Command(summary="say what a folder is and what is in it", run=_info),
    "recipe list": Command(summary="list the recipes: named, complete configurations", run=_recipe_list),
    "recipe fit": Command(summary="write a recipe that fits your own dataset into a file", run=_recipe_fit),
    "recipe show": Command(summary="print a recipe's configuration", run=_recipe_show),
}
