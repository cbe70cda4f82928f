"""The flow policy: one step function, ratio 1, sampling, losses, groups, files."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.policy_helpers import STATISTICS, generator, observe, shaken, tiny
from vlarft.config import load_config
from vlarft.data.actions import ActionNormalizer
from vlarft.data.statistics import Statistics
from vlarft.errors import CheckpointError, ConfigError, DataError, DtypeError, ShapeError
from vlarft.models.flow_policy import (
    FlowPolicy,
    FlowPolicyConfig,
    FlowTrace,
    build_policy,
)
from vlarft.models.policy import Observation, Policy, Proposal, Share, Start


def with_config(policy: FlowPolicy, **changes: object) -> FlowPolicy:
    """The same weights under another convention."""
    copy = FlowPolicy(policy.config.model_copy(update=changes), STATISTICS)
    copy.load_state_dict(policy.state_dict())
    return copy


def test_a_flow_policy_is_a_policy() -> None:
    assert isinstance(tiny(), Policy)


def test_sample_returns_shapes_types_and_an_fp32_chain() -> None:
    policy, observation = tiny(), observe()
    proposal = policy.sample(observation, 4, generator())
    assert proposal.actions.shape == proposal.log_prob.shape == (3, 4, 8, 7)
    trace = proposal.trace
    assert isinstance(trace, FlowTrace)
    assert trace.chain.shape == (3, 4, 11, 8, 7)
    assert trace.chain.dtype == torch.float32
    assert trace.context.tokens.shape == (3, policy.encoder.tokens, policy.encoder.width)
    assert not proposal.log_prob.requires_grad
    raw = ActionNormalizer(STATISTICS.action_q01, STATISTICS.action_q99).denormalize(
        trace.chain[:, :, -1]
    )
    assert torch.equal(raw, proposal.actions)
    assert torch.equal(proposal.actions[..., 6], trace.chain[:, :, -1, :, 6])  # gripper stays raw


@pytest.mark.parametrize("log_prob", ["mean", "sum"])
@pytest.mark.parametrize("noise_scale", ["sigma", "sigma_sqrt_dt"])
def test_first_ratio_is_exactly_one(log_prob: str, noise_scale: str) -> None:
    policy = with_config(tiny(), log_prob=log_prob, noise_scale=noise_scale).train()
    observation = observe()
    proposal = policy.sample(observation, 4, generator())
    score = policy.log_prob(observation, proposal)
    assert torch.equal(score.log_prob, proposal.log_prob)
    chosen = proposal.select([2, 0])
    part = policy.log_prob(observation.select([2, 0]), chosen)
    assert ((part.log_prob - chosen.log_prob).exp() - 1).abs().max() < 1e-5


def test_first_ratio_is_one_after_saving_and_loading(tmp_path: Path) -> None:
    policy, observation = tiny(), observe()
    proposal = policy.sample(observation, 4, generator())
    policy.save_pretrained(tmp_path / "policy")
    again = FlowPolicy.from_pretrained(tmp_path / "policy")
    assert torch.equal(again.log_prob(observation, proposal).log_prob, proposal.log_prob)


def test_log_prob_is_the_mean_of_the_gaussians_of_the_chain() -> None:
    policy, observation = tiny(), observe(2)
    proposal = policy.sample(observation, 3, generator())
    chain = proposal.trace.chain
    flow, sigma = policy._conditions(proposal.trace.context)
    total, spread = 0.0, 0.0
    for k in range(10):
        x = chain[:, :, k]
        time = torch.tensor([k / 10])
        projected = policy.noisy_action_projector(x.unsqueeze(-1)).flatten(-2)
        mean = x - 0.1 * policy.flow_head(projected, time, flow)
        normal = torch.distributions.Normal(mean, policy.sigma_net(projected, time, sigma).exp())
        total = total + normal.log_prob(chain[:, :, k + 1])
        spread = spread + normal.entropy()
    score = policy.log_prob(observation, proposal)
    torch.testing.assert_close(score.log_prob, total / 10, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score.entropy, spread / 10, rtol=1e-5, atol=1e-5)
    summed = with_config(policy, log_prob="sum").log_prob(observation, proposal)
    torch.testing.assert_close(summed.log_prob, total, rtol=1e-5, atol=1e-4)


def test_first_ratio_differs_after_a_weight_changes() -> None:
    policy, observation = tiny(), observe()
    proposal = policy.sample(observation, 4, generator())
    with torch.no_grad():
        policy.flow_head.dit.final_layer.linear.bias += 0.01
    assert not torch.equal(policy.log_prob(observation, proposal).log_prob, proposal.log_prob)


def test_a_fresh_policy_explores_with_the_specified_spread() -> None:
    policy, observation = build_policy("tiny", STATISTICS), observe(2)
    proposal = policy.sample(observation, 60, generator())
    steps = proposal.trace.chain.diff(dim=2)  # zero velocity: every step is pure noise
    assert steps.std().item() == pytest.approx(math.sqrt(0.08 * 0.2), rel=0.02)
    score = policy.log_prob(observation, proposal)
    expected = math.log(math.sqrt(0.08 * 0.2)) + 0.5 * math.log(2 * math.pi * math.e)
    assert (score.entropy - expected).abs().max() < 1e-5
    scaled = with_config(policy, noise_scale="sigma_sqrt_dt").sample(observation, 60, generator())
    injected = scaled.trace.chain.diff(dim=2).std().item()
    assert injected == pytest.approx(math.sqrt(0.08 * 0.2 / 10), rel=0.02)


def test_sampling_is_addressed_by_the_generator_and_leaves_global_state_alone() -> None:
    policy, observation = tiny(), observe()
    state = torch.get_rng_state()
    first = policy.sample(observation, 2, generator(5)).actions
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, policy.sample(observation, 2, generator(5)).actions)
    assert not torch.equal(first, policy.sample(observation, 2, generator(6)).actions)


def test_a_shared_start_serves_a_scene_and_is_scored_like_any_other() -> None:
    policy, observation = tiny(), observe(2)
    proposal = policy.sample(observation, 4, generator(), start="shared")
    start = proposal.trace.chain[:, :, 0]
    assert torch.equal(start, start[:, :1].expand_as(start))
    assert not torch.equal(start[0], start[1])  # one a scene, not one for all
    assert not torch.equal(proposal.actions[:, 0], proposal.actions[:, 1])
    assert torch.equal(policy.log_prob(observation, proposal).log_prob, proposal.log_prob)
    own = policy.sample(observation, 4, generator()).trace.chain[:, :, 0]
    assert not torch.equal(own[:, 0], own[:, 1])


def test_the_mean_start_explores_around_what_is_executed() -> None:
    policy, observation = with_config(shaken(tiny()), noisy_steps=1), observe(2)
    for bound in (policy.sigma_net.log_std_min, policy.sigma_net.log_std_max):
        bound.fill_(math.log(1e-5))
    proposal = policy.sample(observation, 4, generator(), start="mean")
    other = policy.sample(observation, 4, generator(9), start="mean")
    assert torch.equal(proposal.trace.chain[:, :, 0], other.trace.chain[:, :, 0])
    executed = policy.act(observation)[:, None].expand_as(proposal.actions)
    torch.testing.assert_close(proposal.actions, executed, rtol=0, atol=1e-3)
    assert proposal.mean is not None
    torch.testing.assert_close(proposal.mean, executed[:, 0], rtol=0, atol=1e-6)
    assert torch.equal(proposal.select([1]).mean, proposal.mean[1:])
    drawn = policy.sample(observation, 4, generator(), start="shared")
    assert drawn.mean is None
    assert (drawn.actions - executed).abs().max() > 1e-2


@pytest.mark.parametrize("start", ["independent", "shared", "mean"])
def test_a_share_of_a_batch_gets_the_noise_of_its_scenes(start: Start) -> None:
    policy, observation = shaken(tiny()), observe(5)
    whole = policy.sample(observation, 3, generator(), start=start)
    actions = torch.rand((5, 8, 7), generator=generator()) - 0.5
    for rows in (torch.tensor([3, 0, 4]), torch.tensor([1, 2])):
        own, share = observation.select(rows), Share(rows, 5)
        part = policy.sample(own, 3, generator(), start=start, share=share)
        assert torch.equal(part.trace.chain[:, :, 0], whole.trace.chain[rows][:, :, 0])
        # Later states pass through matrix products, whose rounding may depend on the batch.
        torch.testing.assert_close(part.actions, whole.actions[rows], rtol=0, atol=1e-5)
    losses = [
        policy.flow_loss(observation.select(rows), actions[rows], generator(), share=Share(rows, 5))
        for rows in torch.arange(5).tensor_split(5)
    ]
    together = policy.flow_loss(observation, actions, generator())
    torch.testing.assert_close(torch.stack(losses).mean(), together)


def test_act_is_deterministic_and_reads_picture_state_and_instruction() -> None:
    policy, observation = tiny().train(), observe(2)
    chunk = policy.act(observation)
    assert chunk.shape == (2, 8, 7)
    assert torch.equal(chunk, policy.act(observation))
    image, state, text = observation.image, observation.proprioception, observation.instruction
    for other in (
        Observation(255 - image, state, text),
        Observation(image, state + 0.3, text),
        Observation(image, state, text[::-1]),
    ):
        assert (policy.act(other) - chunk).abs().max() > 1e-4
    drawn = policy.act(observation, generator(1))
    assert not torch.equal(drawn, chunk)
    assert torch.equal(drawn, policy.act(observation, generator(1)))


def test_gradients_reach_heads_and_projectors_but_not_the_encoder() -> None:
    policy, observation = tiny(), observe()
    proposal = policy.sample(observation, 4, generator())
    score = policy.log_prob(observation, proposal)
    (score.log_prob.sum() + score.entropy.sum()).backward()
    groups = policy.parameter_groups()
    assert set(groups) == {"head", "sigma"}
    trained = [p for group in groups.values() for p in group]
    assert len({id(p) for p in trained}) == len(trained)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert all(p.grad is None for p in policy.encoder.parameters())


def test_one_adamw_step_at_1e6_moves_the_weights() -> None:
    policy, observation = tiny(), observe()
    proposal = policy.sample(observation, 4, generator())
    head = policy.parameter_groups()["head"]
    optimiser = torch.optim.AdamW(head, lr=1e-6, weight_decay=0.01)
    policy.log_prob(observation, proposal).log_prob.mul(proposal.actions).sum().backward()
    before = [p.detach().clone() for p in head]
    optimiser.step()
    counts = [((p != b) & (p.grad != 0), p.grad != 0) for p, b in zip(head, before, strict=True)]
    moved, total = (sum(int(c[i].sum()) for c in counts) for i in (0, 1))
    assert total > 10_000
    assert moved / total > 0.99


def test_flow_loss_is_the_velocity_error_in_normalised_units() -> None:
    policy, observation = build_policy("tiny", STATISTICS).eval(), observe(2)
    # A fresh head predicts 0, so the loss is the mean square of noise - action.
    actions = policy.actions.denormalize(torch.full((2, 8, 7), 0.5))
    noise = torch.randn((2, 1, 8, 7), generator=generator(3))[:, 0]
    loss = policy.flow_loss(observation, actions, generator(3))
    assert loss.item() == pytest.approx((noise - 0.5).square().mean().item(), rel=1e-4)


def test_flow_loss_trains_the_encoder_unless_a_context_is_given() -> None:
    policy, observation = tiny(), observe()
    actions = torch.rand((3, 8, 7)) - 0.5
    loss = policy.flow_loss(observation, actions, generator())
    frozen = policy.flow_loss(observation, actions, generator(), context=policy.encode(observation))
    assert torch.equal(loss, frozen)
    frozen.backward()
    assert all(p.grad is None for p in policy.encoder.parameters())
    loss.backward()
    trained = policy.pretraining_parameters()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert all(p.grad is None for p in policy.sigma_net.parameters())
    assert {id(p) for p in policy.encoder.parameters()} <= {id(p) for p in trained}
    policy.freeze_encoder()
    assert not {id(p) for p in policy.encoder.parameters()} & {
        id(p) for p in policy.pretraining_parameters()
    }


def test_behaviour_cloning_learns_what_the_ode_then_does() -> None:
    torch.manual_seed(0)
    policy, observation = build_policy("tiny", STATISTICS), observe(2)
    wanted = policy.actions.denormalize(
        torch.linspace(-0.8, 0.8, 2 * 8 * 7).view(2, 8, 7).contiguous()
    )
    optimiser = torch.optim.Adam(policy.pretraining_parameters(), lr=1e-2)
    noise = generator(1)
    before = (policy.act(observation) - wanted).abs().mean()
    for _ in range(150):
        optimiser.zero_grad()
        policy.flow_loss(observation.select([0, 1] * 8), wanted.repeat(8, 1, 1), noise).backward()
        optimiser.step()
    after = (policy.act(observation) - wanted).abs().mean()
    assert after < 0.4 * before


def test_official_times_lean_to_the_clean_end() -> None:
    policy = tiny()
    uniform = policy._times(20_000, generator())
    official = with_config(policy, time_sampling="official")._times(20_000, generator())
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert official.min() >= 0.001
    assert official.max() <= 1.0
    # r = U1^(2/3) / (U1^(2/3) + U2), integrated numerically on a midpoint grid
    grid = (torch.arange(1000) + 0.5) / 1000
    first = grid[:, None] ** (2 / 3)
    expected = (0.001 + 0.999 * first / (first + grid)).mean().item()
    assert official.mean().item() == pytest.approx(expected, abs=0.01)


def test_dropout_never_acts_in_fine_tuning() -> None:
    head = tiny().config.head.model_copy(update={"dropout": 0.5})
    policy = with_config(tiny(), head=head).train()
    observation = observe()
    proposal = policy.sample(observation, 2, generator())
    assert torch.equal(policy.log_prob(observation, proposal).log_prob, proposal.log_prob)
    actions = torch.zeros((3, 8, 7))
    losses = [policy.flow_loss(observation, actions, generator()).item() for _ in range(2)]
    assert losses[0] != losses[1]
    policy.eval()
    losses = [policy.flow_loss(observation, actions, generator()).item() for _ in range(2)]
    assert losses[0] == losses[1]


def test_the_encoder_runs_once_per_sample_and_never_in_log_prob() -> None:
    policy, observation = tiny(), observe()
    calls: list[int] = []
    policy.encoder.register_forward_hook(lambda *_: calls.append(1))
    proposal = policy.sample(observation, 5, generator())
    assert len(calls) == 1
    policy.log_prob(observation, proposal)
    assert len(calls) == 1


def test_small_preset_fits_its_checkpoint_budget_and_starts_at_the_right_sigma() -> None:
    policy = build_policy("small", STATISTICS)
    assert sum(v.numel() for v in policy.state_dict().values()) < 2_000_000
    observation = observe(1, 64)
    flow, sigma = policy._conditions(policy.encode(observation))
    x = torch.randn(1, 2, 8, 7)
    for k in range(10):
        _, log_sigma = policy._moments(k, x, flow, sigma)
        assert (log_sigma.exp() - 0.12649).abs().max() < 5e-6


def test_same_seed_same_weights() -> None:
    first, second, other = (build_policy("tiny", STATISTICS, s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize(
    ("dtype", "limit"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3)]
)
def test_save_and_load(tmp_path: Path, dtype: str, limit: float) -> None:
    policy = shaken(build_policy("tiny", STATISTICS))
    policy.save_pretrained(tmp_path / "policy", dtype=dtype)  # type: ignore[arg-type]
    files = sorted(f.name for f in (tmp_path / "policy").iterdir())
    assert files == ["config.json", "model.safetensors", "statistics.json"]
    assert [f.name for f in tmp_path.iterdir()] == ["policy"]
    again = FlowPolicy.from_pretrained(tmp_path / "policy")
    assert again.config == policy.config
    assert again.statistics == policy.statistics
    for key, value in policy.state_dict().items():
        loaded = again.state_dict()[key]
        assert loaded.dtype == torch.float32
        assert (loaded - value).abs().max() <= limit * value.abs().max()
    assert torch.equal(again.sigma_net.log_std_min, policy.sigma_net.log_std_min)


def test_saving_again_replaces_the_files_and_keeps_others(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    tiny(0).save_pretrained(folder)
    (folder / "provenance.json").write_text("{}")
    second = tiny(1)
    second.save_pretrained(folder)
    again = FlowPolicy.from_pretrained(folder)
    assert torch.equal(again.proprio_projector.fc1.weight, second.proprio_projector.fc1.weight)
    assert (folder / "provenance.json").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["policy"]


def test_weights_beyond_half_precision_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    policy = tiny()
    with torch.no_grad():
        policy.proprio_projector.fc1.bias += 1e6
    with pytest.raises(CheckpointError, match=r"proprio_projector\.fc1\.bias"):
        policy.save_pretrained(tmp_path / "policy", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_damaged_folders_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    tiny().save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        FlowPolicy.from_pretrained(tmp_path / "nowhere")
    weights = load_file(folder / "model.safetensors")
    dropped = {k: v for k, v in weights.items() if k != "noisy_action_projector.fc1.bias"}
    save_file(dropped, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing 1 .*noisy_action_projector\.fc1\.bias"):
        FlowPolicy.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        FlowPolicy.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"stesp": 10}))
    with pytest.raises(CheckpointError, match="did you mean 'steps'"):
        FlowPolicy.from_pretrained(folder)


def test_another_orientation_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    tiny().save_pretrained(folder)
    values = STATISTICS.to_dict() | {"orientation": "raw"}
    (folder / "statistics.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="orientation 'raw'"):
        FlowPolicy.from_pretrained(folder)
    with pytest.raises(DataError, match="orientation"):
        build_policy("tiny", Statistics.from_dict(values))


def test_users_mistakes_get_one_clear_line() -> None:
    policy, observation = tiny(), observe()
    proposal = policy.sample(observation, 2, generator())
    with pytest.raises(ShapeError, match="n = 0"):
        policy.sample(observation, 0, generator())
    with pytest.raises(ShapeError, match="3 scenes observed, 1 in the proposal"):
        policy.log_prob(observation, proposal.select([0]))
    foreign = Proposal(proposal.actions, proposal.log_prob, None)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="expected a proposal of a flow policy"):
        policy.log_prob(observation, foreign)
    with pytest.raises(ShapeError, match="expected \\[3, 8, 7\\]"):
        policy.flow_loss(observation, torch.zeros(3, 7, 7), generator())
    with pytest.raises(ConfigError, match="known: tiny, small, places, paper"):
        build_policy("large", STATISTICS)
    with pytest.raises(ConfigError, match="sigma_min"):
        load_config(FlowPolicyConfig, {"sigma_min": 0.5})
    short = Observation(observation.image, observation.proprioception[:, :6], ["milk"] * 3)
    with pytest.raises(ShapeError, match="proprioception"):
        policy.act(short)


def test_observation_checks_and_selects() -> None:
    observation = observe(3)
    picked = observation.select(torch.tensor([2, 0]))
    assert len(picked) == 2
    assert torch.equal(picked.image[0], observation.image[2])
    assert picked.instruction == [observation.instruction[2], observation.instruction[0]]
    with pytest.raises(DtypeError, match="uint8"):
        Observation(observation.image.float(), observation.proprioception, ["milk"] * 3)
    with pytest.raises(ShapeError, match="one instruction a scene"):
        Observation(observation.image, observation.proprioception, ["milk"])


@pytest.mark.parametrize("noisy", [1, 3])
def test_only_the_last_steps_are_stochastic_and_scored(noisy: int) -> None:
    policy = with_config(shaken(tiny()), noisy_steps=noisy)
    observation = observe(2)
    proposal = policy.sample(observation, 4, generator(), start="shared")
    chain = proposal.trace.chain
    assert chain.shape[2] == noisy + 1
    start = chain[:, :, 0]  # the end of the ODE from one start a scene
    assert torch.equal(start, start[:, :1].expand_as(start))
    assert not torch.equal(chain[:, :, 1], chain[:, :1, 1].expand_as(chain[:, :, 1]))
    score = policy.log_prob(observation, proposal)
    torch.testing.assert_close(score.log_prob, proposal.log_prob, rtol=1e-5, atol=1e-5)
    other = with_config(policy, noisy_steps=noisy + 1)
    with pytest.raises(ShapeError, match=f"with {noisy + 1} noisy steps"):
        other.log_prob(observation, proposal)


def test_the_deterministic_steps_are_those_of_act() -> None:
    policy = with_config(shaken(tiny()), noisy_steps=1)
    observation = observe(2)
    start = torch.randn((2, 1, 8, 7), generator=generator(3))
    flow = policy._condition(policy.flow_head.dit, policy.encode(observation))
    x = start
    for k in range(9):
        x = x - policy._velocity(k, x, flow) / 10
    proposal = policy.sample(observation, 2, generator(3), start="shared")
    torch.testing.assert_close(proposal.trace.chain[:, :1, 0], x, rtol=1e-5, atol=1e-5)


def test_correlated_noise_keeps_each_entry_s_spread() -> None:
    policy = with_config(build_policy("tiny", STATISTICS), noisy_steps=1, noise_correlation=0.75)
    chain = policy.sample(observe(1), 4000, generator(), start="shared").trace.chain
    step = chain[0, :, 1] - chain[0, :, 0]  # [n, T, A]
    sigma = math.sqrt(0.08 * 0.2)
    assert step.std(0).sub(sigma).abs().max() < 0.05 * sigma
    between = torch.stack([torch.corrcoef(step[..., a].T) for a in range(7)])  # [A, T, T]
    apart = ~torch.eye(8, dtype=torch.bool).expand(7, -1, -1)
    assert between[apart].sub(0.75).abs().max() < 0.05
    entries = torch.corrcoef(step[:, 0].T)
    assert entries[~torch.eye(7, dtype=torch.bool)].abs().max() < 0.1  # between dimensions: none


@pytest.mark.parametrize("n", [1, 6, 7])
def test_antithetic_rollouts_are_mirror_images_in_pairs(n: int) -> None:
    policy = with_config(shaken(tiny()), noisy_steps=1, noise_correlation=0.5, antithetic=True)
    observation = observe(2)
    chain = policy.sample(observation, n, generator(), start="mean").trace.chain
    conditions = policy._conditions(policy.encode(observation))
    mean, _ = policy._moments(9, chain[:, :, 0].contiguous(), *conditions)
    noise = chain[:, :, 1] - mean  # [P, n, T, A]
    assert noise.shape[1] == n
    assert noise.abs().min() > 0
    first, second = noise[:, : n - n % 2 : 2], noise[:, 1::2]
    torch.testing.assert_close(first, -second, rtol=1e-4, atol=1e-5)
    others = noise[:, ::2].flatten(2)
    assert all(not torch.equal(others[:, 0], others[:, k]) for k in range(1, others.shape[1]))


def test_antithetic_rollouts_are_spread_like_others() -> None:
    policy = with_config(build_policy("tiny", STATISTICS), noisy_steps=1, antithetic=True)
    chain = policy.sample(observe(1), 8000, generator(), start="shared").trace.chain
    step = chain[0, :, 1] - chain[0, :, 0]
    sigma = math.sqrt(0.08 * 0.2)
    assert step.std(0).sub(sigma).abs().max() < 0.06 * sigma
    assert step[::2].mean(0).abs().max() < 0.1 * sigma  # neither half is one side


def test_two_parts_of_a_batch_draw_its_antithetic_noise() -> None:
    policy = with_config(shaken(tiny()), noisy_steps=1, antithetic=True)
    observation, rows = observe(4), torch.tensor([1, 3])
    whole = policy.sample(observation, 4, generator(), start="mean")
    own, share = observation.select(rows), Share(rows, 4)
    part = policy.sample(own, 4, generator(), start="mean", share=share)
    torch.testing.assert_close(part.actions, whole.actions[rows], rtol=1e-5, atol=1e-5)


def test_more_noisy_steps_than_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="noisy_steps 11 is above steps 10"):
        load_config(FlowPolicyConfig, {"noisy_steps": 11})
