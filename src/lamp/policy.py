"""Observation -> action chunk: normalise, encode, act, invert (Algorithm 2), for one observation or a batch."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamp.data.feature_cache.cache import FrozenBackbone
from lamp.data.feature_cache.shards import content_hash
from lamp.data.observation_encoder import ObservationEncoder
from lamp.errors import MismatchError
from lamp.files import atomic_path
from lamp.model.fast import FastActor, Stopwatch
from lamp.model.fast_step import FastStep
from lamp.model.intervene import InterveningActor, OracleActor
from lamp.model.lamp import LaMP
from lamp.model.prior_interventions import Intervention, Shuffled, WrongPriorInstruction
from lamp.model.qwen3_vl import Qwen3VLBackbone
from lamp.model.realtime import PreviousChunk, RealTimeMethod, RealTimeName, overlap_weights, real_time_method
from lamp.seeding import generator_at
from lamp.train.checkpoint import BackboneCache, Expected, load_checkpoint, motion_weights, save_checkpoint
from lamp.train.checkpoint_metadata import Description, FlowRecord, PolicyRecord, checkpoint_folder, read_description
from lamp.train.config import BFloat16, Float32, Precision
from lamp.train.model_card import Publication
from lamp.train.publishing import check_replaceable, copy_vlm, find_checkpoint, push, write_card
from lamp.types import Encoded, Observations
from lamp_client.types import ActionChunk, Observation

Actor = LaMP | FastActor | InterveningActor | OracleActor


class LaMPPolicy:
    """A trained policy. States are given, and actions come, in the units in which the dataset was recorded."""

    def __init__(
        self,
        model: LaMP,
        description: Description,
        backbone: FrozenBackbone,
        *,
        device: torch.device | str = "cpu",
        precision: Precision | None = None,
    ) -> None:
        if description.policy is None or description.kind != "policy":
            raise MismatchError(f"this is a {description.kind} checkpoint; acting needs a policy: `lamp train policy`.")
        self.model, self.description, self.encoder = model.eval().to(device), description, ObservationEncoder(backbone)
        if isinstance(backbone, nn.Module):
            backbone.eval().to(device)
        self.device = str(device)
        self._requested_precision, self.precision = precision, precision or Float32()
        self.record: PolicyRecord = description.policy
        self.dataset = description.data.name
        """The name of the dataset whose robot it acts as, and whose units its states and actions have."""
        self._actor: Actor = self.model
        self._computing = self.model
        """Where the fast path is prepared, the model that it computes with."""
        self._intervention: Intervention | None = None
        self._is_oracle = False
        self._step: tuple[FastStep, Qwen3VLBackbone] | None = None
        self._source: Path | None = None
        self._real_time: RealTimeName = "auto"

    @property
    def real_time(self) -> RealTimeName:
        """How chunks go on from committed actions (`lamp.model.realtime`).

        Raises:
            MismatchError: Set to `trained`, for which the policy was not.
        """
        return self._real_time

    @real_time.setter
    def real_time(self, name: RealTimeName) -> None:
        real_time_method(name, self.model.config.real_time)
        self._real_time = name

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        *,
        device: torch.device | str = "cpu",
        backbone: FrozenBackbone | BackboneCache | None = None,
        expected: Expected | None = None,
        precision: Precision | None = None,
    ) -> LaMPPolicy:
        """Opens a policy checkpoint (its folder, or the run that holds it).

        Args:
            backbone: The frozen backbone, where the caller has it, or where those of several policies are kept; None loads the
                one that the checkpoint names.
            expected: What else the checkpoint has to be, such as its cameras or its chunk.
            precision: Of the networks; by default float32, but for the fast path on a GPU.

        Raises:
            DataError: There is no checkpoint, or it is damaged; or its backbone is not where its settings say.
            MismatchError: It is no policy, was trained on another backbone, or is not what is expected. Nothing of the weights,
                nor of the backbone's, has been read then.
        """
        path, expected = Path(path), replace(expected or Expected(), kind="policy")
        expected.check(checkpoint_folder(path), read_description(path))
        if backbone is None or isinstance(backbone, BackboneCache):
            backbone = (backbone or BackboneCache()).of(path)
        expected = replace(expected, backbone_key=backbone.key, backbone=backbone.description)
        model, description = load_checkpoint(path, expected=expected, device=device)
        policy = cls(model, description, backbone, device=device, precision=precision)
        policy._source = path
        return policy

    @classmethod
    def from_pretrained(cls, source: Path | str, *, revision: str | None = None, **settings: Any) -> LaMPPolicy:
        """Opens a policy from a folder or from the Hugging Face hub.

        Args:
            source: A checkpoint's folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub.
            revision: The hub's branch, tag or commit.
            settings: As for `from_checkpoint`.

        Raises:
            DataError: The hub does not give it, or there is no checkpoint, or it is damaged or holds a pickle.
            MismatchError: As for `from_checkpoint`.
        """
        return cls.from_checkpoint(find_checkpoint(source, revision), **settings)

    def save_pretrained(self, folder: Path | str, about: Publication | None = None) -> Path:
        """Writes the policy as a checkpoint of its own, with a card, in place of an earlier copy that is there.

        Raises:
            DataError: Something else is there, such as a run or a dataset.
            MismatchError: The Motion Expert's weights are no longer those of Stage 1, so that no one could load them.
        """
        weights, source = self.model.state_dict(), self.description.motion_source
        if source is not None and content_hash(motion_weights(weights)) != source.sha256:
            raise MismatchError(
                "the Motion Expert's weights are not those of its Stage 1 any more; expected them frozen, as Stage 2 has them."
            )
        check_replaceable(Path(folder))
        with atomic_path(folder) as staged:
            save_checkpoint(staged, self.description, weights)
            write_card(staged, about or Publication())
            if self._source is not None:
                copy_vlm(self._source, staged)
        return Path(folder)

    def push_to_hub(
        self, repository: str, about: Publication | None = None, *, private: bool = False, message: str | None = None
    ) -> str:
        """Publishes the policy, with its card, as OWNER/NAME or at OWNER/NAME@BRANCH; returns the commit's address.

        Raises:
            DataError: The hub cannot be reached, or does not take it.
            MismatchError: As for `save_pretrained`.
            MissingDependencyError: `huggingface_hub` is not installed.
        """
        about = about or Publication()
        with TemporaryDirectory() as folder:
            saved = self.save_pretrained(Path(folder) / "checkpoint", about)
            return push(saved, repository, about, private=private, message=message)

    def compile(self) -> LaMPPolicy:
        """Prepares the fast path (`lamp.model.fast`): the same actions, within rounding, sooner. Returns the policy itself.

        The backbone takes its own (`lamp.model.qwen_fast`), for all policies that share it. No weights must change any more. On
        a GPU, where no precision was asked for, the networks compute in bfloat16, and the first call of each batch size, and of
        each length of the instruction, takes a while.
        """
        backbone, cuda = self.encoder.backbone, self.device.startswith("cuda")
        precision = self._requested_precision or (BFloat16() if cuda else Float32())
        self._actor = fast = FastActor(self.model, precision.DTYPE)
        self._computing = fast.model
        if isinstance(backbone, Qwen3VLBackbone):
            backbone.accelerate()
            lora = backbone.config.lora
            twice = self.uses_motion and lora is not None and not lora.prior_reads_adapted
            if cuda and backbone.fast is not None and not twice:
                step = FastStep(backbone.fast, fast, padding=backbone.padding, length=backbone.length)
                self._step = step, backbone
        return self

    def of_dataset(self, name: str) -> LaMPPolicy:
        """The same policy, acting as the robot of another dataset that it was trained on.

        Raises:
            ConfigError: It was not trained on it.
        """
        if name == self.dataset:
            return self
        other = copy.copy(self)
        other.record, other.dataset = self.record.of_dataset(name), name
        return other

    def intervened(self, intervention: Intervention) -> LaMPPolicy:
        """The same policy with its motion prior changed (`lamp.model.prior_interventions`).

        Raises:
            MismatchError: It has no motion prior, or not what the intervention changes.
        """
        other = copy.copy(self)
        other._actor, other._step = InterveningActor(self._computing, intervention), None
        other._intervention, other._is_oracle = intervention, False
        return other

    def oracle(self) -> LaMPPolicy:
        """The same policy, told in every call of `act_batch` the true motion to come in place of predicting it.

        Raises:
            MismatchError: It has no motion prior.
        """
        other = copy.copy(self)
        other._actor, other._step = OracleActor(self._computing), None
        other._intervention, other._is_oracle = None, True
        return other

    @property
    def uses_motion(self) -> bool:
        """Whether the motion prior guides the actions."""
        return self.model.motion_expert is not None

    @property
    def foresees(self) -> FlowRecord | None:
        """The scene flow that the motion prior predicts; None without one."""
        return self.description.flow if self.uses_motion else None

    @property
    def execute(self) -> int:
        """Actions of a chunk to carry out before asking again."""
        return self.record.execute

    @property
    def chunk(self) -> int:
        """Actions in a chunk."""
        return self.record.chunk

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server tells its clients, as plain values."""
        return {
            "policy": "lamp",
            "cameras": {camera.name: [camera.height, camera.width] for camera in self.description.backbone.cameras},
            "state_width": self.record.state_width,
            "recorded_state_width": self.record.recorded_state_width,
            "action_width": self.record.scaling.actions.width,
            "chunk": self.chunk,
            "execute": self.execute,
            "fps": self.record.fps,
            "dataset": self.dataset,
            **self.record.embodiment.client_metadata,
            "action_names": list(self.record.action_names),
            "action_value_units": list(self.record.action_units),  # `action_units` is whose units they are
            "uses_motion": self.uses_motion,
            "real_time": self._real_time_name,
            "step": self.description.step,
            "weights_sha256": self.description.weights_sha256,
            "code": self.description.code,
        }

    def act(self, observation: Observation, *, noise_seed: tuple[int, ...] | None = None) -> ActionChunk:
        """Returns the next actions for one observation; without a seed, the noise is new every time."""
        return self.act_batch([observation], [noise_seed or (secrets.randbits(62),)])[0]

    @property
    def _real_time_name(self) -> str | None:
        """What `auto` stands for; None for a policy that acts with an intervention, and cannot go on from committed actions."""
        if self._is_oracle or self._intervention is not None:
            return None
        if self._real_time != "auto":
            return self._real_time
        return "guided" if self.model.config.real_time is None else "trained"

    def act_batch(
        self,
        observations: Sequence[Observation],
        noise_seeds: Sequence[tuple[int, ...]],
        foresight: bool = False,
        prior_instructions: Sequence[str] | None = None,
        prior_observations: Sequence[Observation] | None = None,
        true_motion: Sequence[Float[np.ndarray, "k t 3"]] | None = None,
    ) -> list[ActionChunk]:
        """Returns the next actions for several observations in one pass.

        A sample's noise depends on its seed alone, not on the batch it is in.

        Args:
            observations: Of the cameras, image sizes and state width that the policy was trained with.
            noise_seeds: One for each.
            foresight: Also denoise the whole scene flow, for pictures; no action depends on it. The points start on the grid
                with a depth of 0, so their depth is RELATIVE to the unknown depth of the start. None for a policy without motion.
            prior_instructions: For `WrongPriorInstruction`, the Motion Expert's instruction in place of each observation's.
            prior_observations: For `Shuffled`, the Motion Expert's observation in place of each; the states do not matter.
            true_motion: For an `oracle`, the increments of the true scene flow to come, in image fractions and metres, NaN where
                they are not known.

        An observation with `committed` actions is answered by a chunk that begins with these and goes on from them.

        Raises:
            MismatchError: An observation does not fit the policy, or what the Motion Expert is given instead is missing or not
                asked for; or the policy was trained as an oracle, and acts as none.
        """
        if len(observations) != len(noise_seeds):
            raise MismatchError(
                f"{len(noise_seeds)} noise seeds for {len(observations)} observations; expected one for each."
            )
        if self._is_oracle != (true_motion is not None):
            state = "missing" if self._is_oracle else "given"
            raise MismatchError(f"true_motion is {state}; expected for a policy's `oracle()` and for that alone.")
        if not self._is_oracle:
            self.description.check_usable(self._source or "this policy")
        if not observations:
            return []
        for observation in observations:
            self._check(observation)
        chunks: dict[int, ActionChunk] = {}
        for method, rows in self._methods(observations).items():

            def of_rows(values: Sequence[Any] | None, rows: list[int] = rows) -> list[Any] | None:
                return None if values is None else [values[row] for row in rows]

            with torch.inference_mode(method is None or not method.needs_gradient), torch.no_grad():
                answers = self._act_batch(
                    [observations[row] for row in rows], [noise_seeds[row] for row in rows], foresight,
                    of_rows(prior_instructions), of_rows(prior_observations), of_rows(true_motion), method,
                )  # fmt: skip
            chunks.update(zip(rows, answers, strict=True))
        return [chunks[row] for row in range(len(observations))]

    def _methods(self, observations: Sequence[Observation]) -> dict[RealTimeMethod | None, list[int]]:
        """Which observations are answered together, by how they go on from committed actions; None where there are none.

        The choice is each observation's own: a robot with a long delay does not change how another one moves.
        """
        delays = [None if one.committed is None else one.committed.delay for one in observations]
        if all(delay is None for delay in delays):
            return {None: list(range(len(delays)))}
        methods: dict[RealTimeMethod | None, list[int]] = {}
        for row, delay in enumerate(delays):
            # One without committed actions is conditioned on nothing, in the pass of others.
            method = real_time_method(self._real_time, self.model.config.real_time, delay or 0)
            methods.setdefault(method, []).append(row)
        return methods

    def _act_batch(
        self,
        observations: Sequence[Observation],
        noise_seeds: Sequence[tuple[int, ...]],
        foresight: bool,
        prior_instructions: Sequence[str] | None,
        prior_observations: Sequence[Observation] | None,
        true_motion: Sequence[Float[np.ndarray, "k t 3"]] | None,
        method: RealTimeMethod | None,
    ) -> list[ActionChunk]:
        states = np.stack([self.record.selected(observation.state) for observation in observations])
        watch = Stopwatch(self.device)
        prior = self._prior(observations, prior_instructions, prior_observations)
        # Brought to the device beforehand: between the stages, the host waits for nothing.
        motion = (
            self._noise(self.model.motion_shape, noise_seeds, "motion")
            if true_motion is None
            else self._known(true_motion, len(observations))
        )
        inputs = {
            "state": torch.from_numpy(self.record.scaling.scaled_state(states)).to(self.device),
            "true_motion" if self._is_oracle else "motion_noise": motion,
            "action_noise": self._noise(self.model.action_shape, noise_seeds, "action"),
        }
        actor, going_on = self._actor, {}
        if method is not None:
            actor, going_on = self._going_on(observations, states, method)
        pictures: Sequence[np.ndarray | None] = [None] * len(observations)
        if self._step is not None and not foresight and method is None:
            step, backbone = self._step
            acted = step.act(backbone.prepare(self._observed(observations)), **inputs)
        else:
            encoded = self._encode(observations)
            if method is not None:  # what an encoder keeps from other calls may be of inference mode
                encoded = encoded.changed(lambda value: value.clone() if isinstance(value, Tensor) else value)
            watch.note("encode")
            with self.precision.autocast(self.device):
                acted = actor.act(encoded, **inputs, **prior, **going_on)  # pyright: ignore[reportArgumentType]
                if foresight and motion is not None and (flow := self.foresees) is not None:
                    watch.note("act")
                    changed = prior_instructions is not None or prior_observations is not None
                    read = self._for_prior(observations) if changed else prior.get("prior")
                    seen = encoded if read is None else read
                    foreseen = motion if self._is_oracle else self.model.foresee(seen, motion)
                    pictures = list(flow.paths(foreseen).numpy().astype(np.float32))
        watch.note("act" if pictures[0] is None else "foresight")
        actions = self.record.scaling.actions.invert(acted.float().cpu().numpy())
        timing = watch.times_ms()
        actions = self.record.embodiment.recorded(actions, states).astype(np.float32)
        for row, one in zip(actions, (seen.committed for seen in observations), strict=True):
            if one is not None:  # to the bit: there and back, they were rounded
                row[: one.delay] = one.actions[: one.delay]
        gate = self.gate
        return [
            ActionChunk(actions=chunk, timing_ms=dict(timing), foresight=picture, gate=gate)
            for chunk, picture in zip(actions, pictures, strict=True)
        ]

    @property
    def gate(self) -> float | None:
        """How far the motion gate is open; None where there is none."""
        return self.model.gate

    def _check(self, observation: Observation) -> None:
        self.description.backbone.check_images(observation.images)
        if observation.state.shape != (self.record.state_width,):
            width = self.record.state_width
            raise MismatchError(
                f"the state has {observation.state.shape[0]} values; this policy was trained with {width}."
            )

    def _encode(self, observations: Sequence[Observation]) -> Encoded:
        return self.encoder.encode(self._observed(observations)).to(self.device)

    def _observed(self, observations: Sequence[Observation]) -> Observations:
        cameras = [camera.name for camera in self.description.backbone.cameras]
        images = {
            camera: torch.from_numpy(np.stack([observation.images[camera] for observation in observations]))
            for camera in cameras
        }
        instructions = tuple(observation.instruction for observation in observations)
        return Observations(images=images, instructions=instructions).to(self.device)

    def _prior(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str] | None,
        others: Sequence[Observation] | None,
    ) -> dict[str, Encoded]:
        """What the Motion Expert reads where it is something else than the Action Expert does."""
        for name, value, kind in (
            ("prior_instructions", instructions, WrongPriorInstruction),
            ("prior_observations", others, Shuffled),
        ):
            if isinstance(self._intervention, kind) != (value is not None):
                state = "missing" if value is None else "given"
                raise MismatchError(f"{name} are {state}; expected with {kind.name} and with it alone.")
        if instructions is not None:
            others = [replace(one, instruction=text) for one, text in zip(observations, instructions, strict=True)]
        if others is None:
            read = self._for_prior(observations) if self.uses_motion else None
            return {} if read is None else {"prior": read}
        if len(others) != len(observations):
            raise MismatchError(
                f"{len(others)} prior_observations for {len(observations)} observations; expected one for each."
            )
        for other in others:
            self.description.backbone.check_images(other.images)
        read = self._for_prior(others)
        return {"prior": self._encode(others) if read is None else read}

    def _for_prior(self, observations: Sequence[Observation]) -> Encoded | None:
        """The tokens that the Motion Expert reads, where the backbone's adapters make those of the policy others."""
        read = self.encoder.encode_for_prior(self._observed(observations))
        return None if read is None else read.to(self.device)

    def _going_on(
        self, observations: Sequence[Observation], states: Float[np.ndarray, "b s"], method: RealTimeMethod
    ) -> tuple[Actor, dict[str, Any]]:
        """Who goes on from committed actions, and what it is told: what is left of the chunks before, related to the state now.

        Raises:
            MismatchError: They are no actions of this policy, or the policy acts with an intervention.
        """
        if self._is_oracle or self._intervention is not None:
            raise MismatchError("committed actions are given; expected none for an oracle, or with an intervention.")
        width, chunk = self.record.scaling.actions.width, self.chunk
        actions, weights = (
            np.zeros((len(observations), chunk, width), np.float32),
            torch.zeros(len(observations), chunk),
        )
        for row, (one, state) in enumerate(zip((seen.committed for seen in observations), states, strict=True)):
            if one is None:
                continue
            if one.actions.shape[1] != width:
                raise MismatchError(f"committed actions of {one.actions.shape[1]} values; this policy's have {width}.")
            weights[row] = overlap_weights(chunk, len(one.actions), one.delay)
            learnt = self.record.embodiment.learnt(one.actions[None].astype(np.float64), state[None])[0]
            actions[row, : len(one.actions)] = self.record.scaling.actions.normalise(learnt.astype(np.float32))
        previous = PreviousChunk(actions=torch.from_numpy(actions), weights=weights).to(self.device)
        # The fast path's kernels have no gradients.
        actor = self.model if method.needs_gradient else self._actor
        return actor, {"previous": previous, "real_time": method}

    def _noise(self, shape: tuple[int, ...] | None, seeds: Sequence[tuple[int, ...]], use: str) -> Tensor | None:
        if shape is None:
            return None
        return torch.stack([torch.randn(shape, generator=generator_at(*seed, use)) for seed in seeds]).to(self.device)

    def _known(self, true_motion: Sequence[Float[np.ndarray, "k t 3"]], count: int) -> Float[Tensor, "b k t 3"]:
        """The true motion as the Motion Expert sees it: normalised, 0 where it is not known.

        Raises:
            MismatchError: It is not there for each observation, or of another grid or horizon.
        """
        shapes = [one.shape for one in true_motion]
        flow = self.foresees
        if flow is None or shapes != [self.model.motion_shape] * count:
            raise MismatchError(f"true_motion of shapes {shapes}; expected {count} of {self.model.motion_shape}.")
        increments = torch.from_numpy(np.stack(true_motion)).float()
        return torch.where(increments.isfinite(), flow.bounds.normalise(increments), 0.0).to(self.device)
