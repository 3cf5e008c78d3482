"""LaMP as a whole: losses against twins, training against inference, what is frozen, and that one batch is learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import gaussian
from lamp.model.action_expert import Joint, Prefix
from lamp.model.guidance import Tanh
from lamp.model.lamp import Arrival, Departure, LaMP
from lamp.train.stages import with_fewer_tokens
from lamp.types import Motion


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def noises(model):
    return gaussian((2, *model.motion_shape), seeded(1), "cpu"), gaussian((2, *model.action_shape), seeded(2), "cpu")


def with_config(model: LaMP, **changes) -> LaMP:
    """The same weights under a changed configuration."""
    changed = LaMP(replace(model.config, **changes)).eval()
    changed.load_state_dict(model.state_dict())
    return changed


def test_motion_loss_equals_equations_2_and_3(model, batch):
    loss = model.motion_loss(batch, seeded(3))
    generator = seeded(3)
    noise = torch.randn(batch.motion.values.shape, generator=generator)
    tau = torch.rand(2, generator=generator)
    t = tau[:, None, None, None]
    predicted = model.motion_expert((1 - t) * noise + t * batch.motion.values, tau, batch.encoded)
    squared = (predicted - (batch.motion.values - noise)) ** 2
    mask = batch.motion.mask
    expected = torch.stack([squared[b][mask[b]].mean() for b in range(2)]).mean()
    torch.testing.assert_close(loss.total, expected)
    expected_depth = torch.stack([squared[b, ..., 2][mask[b, ..., 2]].mean() for b in range(2)]).mean()
    torch.testing.assert_close(loss.per_axis[2], expected_depth.detach())


def test_more_draws_estimate_the_same_loss(model, batch):
    once = torch.stack([model.motion_loss(batch, seeded(n)).total for n in range(60)])
    many = model.motion_loss(batch, seeded(100), draws=60).total
    assert many.item() == pytest.approx(once.mean().item(), abs=4 * once.std().item() / 60**0.5 + 1e-3)


def test_departure_reads_the_hidden_state_of_pure_noise(model, batch, noises):
    hidden = with_config(model, hidden_at=Departure()).motion_hidden(batch.encoded, noises[0])
    torch.testing.assert_close(hidden, model.motion_expert.hidden(noises[0], torch.zeros(2), batch.encoded))


def test_arrival_reads_it_after_one_euler_step(model, batch, noises):
    noise = noises[0]
    landed = noise + 0.1 * model.motion_expert(noise, torch.zeros(2), batch.encoded)
    expected = model.motion_expert.hidden(landed, torch.full((2,), 0.1), batch.encoded)
    torch.testing.assert_close(model.motion_hidden(batch.encoded, noise), expected)


@pytest.mark.parametrize(("where", "evaluations"), [(Arrival(), 2), (Departure(), 1)])
def test_the_number_of_evaluations(model, batch, noises, where, evaluations):
    model, runs = with_config(model, hidden_at=where), []
    assert model.motion_expert
    model.motion_expert.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    hidden = model.motion_hidden(batch.encoded, noises[0])
    assert len(runs) == evaluations
    assert not hidden.requires_grad


@pytest.mark.parametrize("attention", [Prefix(), Joint()])
def test_training_and_inference_guide_alike(model, batch, noises, attention):
    """Given the noise, Stage 2 conditions on exactly the features that `act` conditions on."""
    action = replace(model.config.action, attention=attention)
    model, seen = with_config(model, action=action), []
    assert model.guidance
    assert model.motion_shape
    model.guidance.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    generator = seeded(7)
    motion_noise = gaussian((2, *model.motion_shape), generator, "cpu")
    model.action_loss(batch, seeded(7))
    model.act(batch.encoded, batch.state, motion_noise=motion_noise, action_noise=noises[1])
    assert len(seen) == 2
    assert torch.equal(*seen)


@pytest.mark.parametrize("hidden_share", [0.0, 0.5])
def test_cached_hidden_states_give_the_same_loss(model, batch, hidden_share):
    """Bit for bit, whether or not some tokens are hidden from the policy: acting hides none, and a cache knows of none."""
    model.eval()
    generator = seeded(7)
    hidden = model.motion_hidden(batch.encoded, gaussian((2, *model.motion_shape), generator, "cpu"))
    fewer = with_fewer_tokens(batch, hidden_share, seeded(3))
    cached = model.action_loss(replace(fewer, motion_hidden=hidden), generator)
    assert torch.equal(cached.total, model.action_loss(fewer, seeded(7)).total)
    assert torch.equal(cached.total, model.action_loss(batch, seeded(7)).total) == (hidden_share == 0.0)


def test_action_loss_equals_equation_5(model, batch):
    model.eval()
    hidden = model.motion_hidden(batch.encoded, gaussian((2, *model.motion_shape), seeded(), "cpu"))
    loss = model.action_loss(replace(batch, motion_hidden=hidden), seeded(3), noise_draws=3)
    generator = seeded(3)
    noise = torch.randn(2, 3, 5, 7, generator=generator)
    tau = model.config.action_tau.sample(6, generator, "cpu").reshape(2, 3)
    guided, total = model.guide(batch.encoded, hidden), 0.0
    for b in range(2):
        errors = []
        for r in range(3):
            noisy = (1 - tau[b, r]) * noise[b, r] + tau[b, r] * batch.actions[b]
            context = model.action_expert.context(
                replace(guided, tokens=guided.tokens[b][None], mask=guided.mask[b][None])
            )
            v = model.action_expert(noisy[None, None], tau[b, r][None, None], batch.state[b][None], context)[0, 0]
            errors.append(((v - (batch.actions[b] - noise[b, r])) ** 2)[batch.action_mask[b]])
        total = total + torch.cat(errors).mean() / 2
    torch.testing.assert_close(loss.total, total, atol=1e-5, rtol=1e-4)
    assert loss.per_dim.shape == (7,)


def test_act_is_algorithm_2(model, batch, noises):
    model.eval()
    hidden = model.motion_hidden(batch.encoded, noises[0])
    context = model.action_expert.context(model.guide(batch.encoded, hidden))
    a = noises[1]
    with torch.no_grad():
        for n in range(10):
            a = a + 0.1 * model.action_expert(a[:, None], torch.full((2, 1), n / 10), batch.state, context)[:, 0]
    acted = model.act(batch.encoded, batch.state, motion_noise=noises[0], action_noise=noises[1])
    torch.testing.assert_close(acted, a, atol=1e-5, rtol=1e-4)


def test_padding_never_matters(model, batch, noises, with_other_padding):
    model.eval()
    chunks = [
        model.act(encoded, batch.state, motion_noise=noises[0], action_noise=noises[1])
        for encoded in (batch.encoded, with_other_padding(batch.encoded))
    ]
    torch.testing.assert_close(*chunks)


def test_a_sample_does_not_depend_on_its_batch(model, batch, noises):
    model.eval()
    together = model.act(batch.encoded, batch.state, motion_noise=noises[0], action_noise=noises[1])
    encoded = replace(batch.encoded, tokens=batch.encoded.tokens[:1], mask=batch.encoded.mask[:1])
    alone = model.act(encoded, batch.state[:1], motion_noise=noises[0][:1], action_noise=noises[1][:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)


def test_the_motion_prior_matters_once_the_gate_is_open(config, model, batch, noises):
    model.eval()
    chunks = [
        model.act(batch.encoded, batch.state, motion_noise=noise, action_noise=noises[1])
        for noise in (noises[0], noises[0].flip(0))
    ]
    assert (chunks[0] - chunks[1]).abs().max() > 1e-4
    closed = LaMP(replace(config, guidance=replace(config.guidance, gate=Tanh()))).eval()
    assert torch.equal(closed.guide(batch.encoded, torch.randn(2, 24, 32)).tokens, batch.encoded.tokens)


def test_a_sample_that_has_not_seen_the_prior_is_not_guided(model, batch, noises):
    model.eval()
    hidden = model.motion_hidden(batch.encoded, noises[0])
    with torch.no_grad():
        model.guidance.g.fill_(5.0)
    everywhere, nowhere = model.guide(batch.encoded, hidden), batch.encoded
    seen = torch.arange(len(hidden)) % 2 == 0
    guided = model.guide(batch.encoded, hidden, seen)
    assert torch.equal(guided.tokens[seen], everywhere.tokens[seen])
    assert torch.equal(guided.tokens[~seen], nowhere.tokens[~seen])
    assert not torch.equal(guided.tokens[seen], nowhere.tokens[seen])


def test_foresee_follows_the_solver(model, batch, noises):
    seen = []
    model.motion_expert.register_forward_hook(lambda _module, args, _output: seen.append(args[1]))
    flow = model.foresee(batch.encoded, noises[0], steps=4)
    assert flow.shape == noises[0].shape
    assert seen == [0, 0.25, 0.5, 0.75]


def test_stage_2_leaves_the_motion_expert_alone(model, batch):
    model.action_loss(batch, seeded()).total.backward()
    assert all(parameter.grad is None for parameter in model.motion_expert.parameters())
    assert all(parameter.grad is not None for parameter in model.guidance.parameters())
    assert all(parameter.grad is not None for parameter in model.action_expert.parameters())


def test_one_configuration_serves_the_stages_and_the_ablation(config, batch, noises):
    stage_1 = LaMP(replace(config, action=None))
    assert (stage_1.guidance, stage_1.action_expert, stage_1.action_shape) == (None, None, None)
    assert stage_1.motion_loss(batch, seeded()).total > 0
    without = LaMP(replace(config, motion=None)).eval()
    assert (without.guidance, without.motion_expert, without.motion_shape) == (None, None, None)
    assert without.action_loss(batch, seeded()).total > 0
    assert without.act(batch.encoded, batch.state, motion_noise=None, action_noise=noises[1]).shape == (2, 5, 7)
    with pytest.raises(MismatchError, match="Motion Expert is missing"):
        without.motion_loss(batch, seeded())
    with pytest.raises(MismatchError, match="Action Expert is missing"):
        stage_1.action_loss(batch, seeded())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": None, "action": None}, "neither"),
        ({"guidance": None}, "no guidance between them"),
        ({"token_width": 25}, "token_width 24 in MotionExpertConfig, 25 in LaMPConfig"),
        ({"solver_steps": 0}, "solver_steps 0 given"),
    ],
)
def test_parts_that_do_not_fit_are_refused(config, change, message):
    with pytest.raises(ConfigError, match=message):
        replace(config, **change)


def test_guidance_of_another_width_is_refused(config):
    with pytest.raises(ConfigError, match="guidance expects motion_width 31"):
        replace(config, guidance=replace(config.guidance, motion_width=31))


def test_bfloat16_keeps_time_and_noise_in_float32(model, batch, noises):
    model.eval()
    exact = model.act(batch.encoded, batch.state, motion_noise=noises[0], action_noise=noises[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.act(batch.encoded, batch.state, motion_noise=noises[0], action_noise=noises[1])
        loss = model.action_loss(batch, seeded()).total
    loss.backward()
    assert rough.dtype == loss.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()
    wholly = LaMP(model.config).eval()
    wholly.load_state_dict(model.state_dict())
    wholly.bfloat16()
    assert wholly.act(batch.encoded, batch.state, motion_noise=noises[0], action_noise=noises[1]).dtype == torch.float32


def falls(step, parameters, steps: int = 150, rate: float = 5e-3) -> float:
    """Returns the mean of the last ten losses over that of the first three."""
    optimiser, losses = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0), []
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps)
    for _ in range(steps):
        loss = step()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10 / (sum(losses[:3]) / 3)


def test_one_batch_of_motion_is_learnt(config, batch):
    """The velocity towards one known flow is (data - x) / (1 - tau): learnable but near tau = 1, where noise hides it."""
    torch.manual_seed(0)
    motion = replace(config.motion, width=64, layers=2, grid=(4, 4), horizon=2, frames_per_token=1)
    model, generator = LaMP(replace(config, motion=motion, guidance=None, action=None)), seeded()
    known = Motion(values=batch.motion.values[:, :16, :2], mask=batch.motion.mask[:, :16, :2])
    batch = replace(batch, motion=known)
    assert falls(lambda: model.motion_loss(batch, generator, draws=8).total, list(model.parameters())) < 0.1


@pytest.mark.parametrize("attention", [Prefix(), Joint()], ids=str)
def test_one_batch_of_actions_is_learnt(config, batch, attention):
    torch.manual_seed(0)
    model, generator = LaMP(replace(config, action=replace(config.action, attention=attention))), seeded()
    assert model.motion_shape
    assert model.guidance
    assert model.action_expert
    hidden = model.motion_hidden(batch.encoded, gaussian((2, *model.motion_shape), seeded(), "cpu"))
    batch = replace(batch, motion_hidden=hidden)
    parameters = [*model.guidance.parameters(), *model.action_expert.parameters()]
    assert falls(lambda: model.action_loss(batch, generator, noise_draws=8).total, parameters) < 0.1
