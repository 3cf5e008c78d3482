"""Interventions: each changes the step that it names, and with the trained value changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import gaussian
from lamp.model.guidance import Tanh
from lamp.model.intervene import InterveningActor
from lamp.model.lamp import LaMP
from lamp.model.motion_fusion import AddFusion
from lamp.model.prior_interventions import (
    EVERY,
    ActionSteps,
    Denoised,
    Gate,
    Intervention,
    Redrawn,
    Shuffled,
    WrongPriorInstruction,
    Zeroed,
    parse,
)
from lamp.types import Encoded


@pytest.fixture
def model(model: LaMP) -> LaMP:
    """Without dropout: `act` is for trained models."""
    return model.eval()


def given(model, batch, seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "encoded": batch.encoded,
        "state": batch.state,
        "motion_noise": gaussian((2, *model.motion_shape), generator, "cpu"),
        "action_noise": gaussian((2, *model.action_shape), generator, "cpu"),
    }


def acted(model: LaMP, intervention: Intervention, inputs: dict, **more) -> torch.Tensor:
    return InterveningActor(model, intervention).act(**inputs, **more)


def decoded(model: LaMP, hidden: torch.Tensor, inputs: dict) -> torch.Tensor:
    return model.decode(model.guide(inputs["encoded"], hidden), inputs["state"], inputs["action_noise"])


def test_the_trained_values_change_nothing(model, batch):
    inputs = given(model, batch)
    usual = model.act(**inputs)
    for same in (Gate(opening=model.gate), Denoised(steps=1), ActionSteps(steps=10)):
        torch.testing.assert_close(acted(model, same, inputs), usual, msg=same.name)
    told = acted(model, WrongPriorInstruction(), inputs, prior=inputs["encoded"])
    torch.testing.assert_close(told, usual)


@pytest.mark.parametrize("name", EVERY)
def test_every_intervention_changes_the_actions(model, batch, name):
    inputs = given(model, batch)
    other = Encoded(tokens=batch.encoded.tokens.flip(0), mask=batch.encoded.mask.flip(0))
    more = {"prior": other} if name in ("prior_told_wrong", "prior_shuffled") else {}
    (intervention,) = parse((name,))
    assert intervention.name == name
    found = acted(model, intervention, inputs, **more)
    assert (found - model.act(**inputs)).abs().max() > 1e-4


def test_a_closed_gate_is_the_policy_on_z_alone(model, batch):
    inputs = given(model, batch)
    unseen = model.guide(batch.encoded, torch.zeros(2, 1, 32), torch.zeros(2, dtype=torch.bool))
    expected = model.decode(unseen, inputs["state"], inputs["action_noise"])
    torch.testing.assert_close(acted(model, Gate(opening=0.0), inputs), expected)


def test_a_gate_is_set_to_what_it_says(model, batch):
    inputs = given(model, batch)
    with torch.no_grad():
        model.guidance.g.fill_(torch.logit(torch.tensor(0.8)).item())
    expected = model.act(**inputs)
    with torch.no_grad():
        model.guidance.g.fill_(-3.0)
    torch.testing.assert_close(acted(model, Gate(opening=0.8), inputs), expected)


def test_a_zeroed_prior_still_passes_the_guidance(model, batch):
    inputs = given(model, batch)
    hidden = torch.zeros_like(model.motion_hidden(batch.encoded, inputs["motion_noise"]))
    torch.testing.assert_close(acted(model, Zeroed(), inputs), decoded(model, hidden, inputs))


def test_a_shuffled_prior_is_of_what_is_given_and_of_nothing_else(model, batch):
    """Whatever else is in the batch, and whatever was asked before."""
    inputs = given(model, batch)
    other = Encoded(tokens=batch.encoded.tokens.flip(0), mask=batch.encoded.mask.flip(0))
    hidden = model.motion_hidden(other, inputs["motion_noise"])
    actor = InterveningActor(model, Shuffled())
    found = actor.act(**inputs, prior=other)
    torch.testing.assert_close(found, decoded(model, hidden, inputs))
    second = part(inputs, 1)
    alone = actor.act(**second, prior=Encoded(tokens=other.tokens[1:], mask=other.mask[1:]))
    torch.testing.assert_close(alone, found[1:])


@pytest.mark.parametrize("name", ["prior_told_wrong", "prior_shuffled"])
def test_what_the_prior_reads_instead_must_be_given(model, batch, name):
    with pytest.raises(MismatchError, match="what the Motion Expert reads instead is missing"):
        acted(model, parse((name,))[0], given(model, batch))


def part(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    encoded, rows = inputs["encoded"], slice(row, row + 1)
    rest = {name: tensor[rows] for name, tensor in inputs.items() if name != "encoded"}
    return {"encoded": Encoded(tokens=encoded.tokens[rows], mask=encoded.mask[rows]), **rest}


def test_redrawn_noise_has_the_old_ones_values_at_other_points(model, batch):
    inputs, asked = given(model, batch), []
    original = model.motion_hidden
    model.motion_hidden = lambda encoded, noise, **more: asked.append(noise) or original(encoded, noise, **more)
    acted(model, Redrawn(), inputs)
    noise = inputs["motion_noise"]
    assert torch.equal(asked[0].flatten().sort().values, noise.flatten().sort().values)
    assert torch.equal(asked[0][0].flatten().sort().values, noise[0].flatten().sort().values)  # no mixing of samples
    assert not (asked[0] == noise).any()


def test_deeper_denoising_reads_the_motion_at_that_time(model, batch):
    inputs = given(model, batch)
    hidden = model.motion_hidden(batch.encoded, inputs["motion_noise"], taken=10)
    foreseen = model.foresee(batch.encoded, inputs["motion_noise"])
    torch.testing.assert_close(hidden, model.motion_expert.hidden(foreseen, torch.ones(2), batch.encoded))
    torch.testing.assert_close(acted(model, Denoised(steps=10), inputs), decoded(model, hidden, inputs))


def test_all_stands_for_every_one_and_none_comes_twice():
    assert parse(("gate=0.50", "all"))[0] == Gate(opening=0.5)
    assert len(parse(("gate=0.50", "all"))) == len(EVERY)
    assert [one.name for one in parse(("all", "prior_zeroed"))] == list(EVERY)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gate", "intervention 'gate': 'no value' given"),
        ("gate=2", "-1 to 1"),
        ("gate=nan", "-1 to 1"),
        ("denoised=1.5", "'1.5' given, a number expected"),
        ("action_steps=0", "1 or more"),
        ("prior_zeroed=1", "unknown intervention 'prior_zeroed=1'"),
        ("zero", "prior_told_wrong"),
    ],
)
def test_impossible_interventions_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        parse((name,))


def test_what_the_model_does_not_have_cannot_be_changed(config):
    without = LaMP(replace(config, motion=None, guidance=None))
    with pytest.raises(MismatchError, match="this policy has none"):
        InterveningActor(without, Zeroed())
    added = LaMP(replace(config, guidance=AddFusion(motion_width=32, heads=2)))
    with pytest.raises(MismatchError, match="no gate"):
        InterveningActor(added, Gate(opening=0.0))
    with pytest.raises(MismatchError, match="the solver has 10 steps"):
        InterveningActor(added, Denoised(steps=11))


def test_a_tanh_gate_can_be_set_too(config, batch):
    model = LaMP(replace(config, guidance=replace(config.guidance, gate=Tanh()))).eval()
    inputs = given(model, batch)
    torch.testing.assert_close(acted(model, Gate(opening=0.0), inputs), model.act(**inputs))
