import pytest
import torch

from vlarft.engine import RolloutEngine, Sampling
from vlarft.errors import BackendError, DataError, DtypeError, PlanError, ShapeError
from vlarft.models.presets import build_world

# The reference back end promises equal tokens across splits only where the sampler's margin exceeds
# float32 rounding (spec 11.8); these seeds were not picked, and no margin here is that small.


def test_equal_actions_give_equal_tokens_under_shared_noise(engine, scenes, actions):
    twins = actions.clone()
    twins[:, 2] = twins[:, 0]
    twins[:, 3, :5] = twins[:, 0, :5]
    tokens = engine.imagine(scenes, twins).tokens
    assert tokens.shape == (3, 4, 8, engine.world.frame_tokens)
    assert torch.equal(tokens[:, 2], tokens[:, 0])
    assert torch.equal(tokens[:, 3, :5], tokens[:, 0, :5])
    assert not torch.equal(tokens[:, 3, 5:], tokens[:, 0, 5:])
    assert not torch.equal(tokens[:, 1], tokens[:, 0])


def test_independent_noise_differs_between_members(engine, scenes, actions):
    same = actions[:, :1].expand(-1, 4, -1, -1)
    sampling = Sampling(noise="independent", top_p=1.0)
    imagined = engine.imagine(scenes, same, sampling, expert_actions=actions[:, 0])
    rows = torch.cat((imagined.tokens, imagined.expert_tokens[:, None]), 1).flatten(0, 1).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)


def test_noise_follows_seed_and_key(engine, scenes, actions):
    first = engine.imagine(scenes, actions, Sampling(seed=1)).tokens
    assert torch.equal(first, engine.imagine(scenes, actions, Sampling(seed=1)).tokens)
    assert not torch.equal(first, engine.imagine(scenes, actions, Sampling(seed=2)).tokens)
    other = scenes.with_keys([0, 5, 2])
    changed = engine.imagine(other, actions, Sampling(seed=1)).tokens
    assert torch.equal(changed[[0, 2]], first[[0, 2]])
    assert not torch.equal(changed[1], first[1])
    with_speculation_off = engine.imagine(scenes, actions, Sampling(seed=1, speculate="off")).tokens
    assert torch.equal(first, with_speculation_off)


@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_do_not_depend_on_the_split(engine, scenes, actions, expert, noise, temperature):
    sampling = Sampling(noise=noise, temperature=temperature)
    whole = engine.imagine(scenes, actions, sampling, expert_actions=expert)
    for p in range(3):
        alone = engine.imagine(scenes[p], actions[p : p + 1], sampling)
        assert torch.equal(alone.tokens[0], whole.tokens[p])
        fewer = engine.imagine(scenes[p], actions[p : p + 1, :2, :3], sampling)
        assert torch.equal(fewer.tokens[0], whole.tokens[p, :2, :3])
        lone = engine.imagine(
            scenes[p], actions[p : p + 1], sampling, expert_actions=expert[p : p + 1]
        )
        assert torch.equal(lone.expert_tokens[0], whole.expert_tokens[p])


def test_the_expert_sees_every_one_of_its_actions(engine, scenes, actions, expert):
    base = engine.imagine(scenes, actions, expert_actions=expert)
    for t in range(8):
        changed = expert.clone()
        changed[:, t] = -changed[:, t]
        other = engine.imagine(scenes, actions, expert_actions=changed)
        assert torch.equal(other.expert_tokens[:, :t], base.expert_tokens[:, :t])
        assert not torch.equal(other.expert_tokens[:, t:], base.expert_tokens[:, t:])
        assert torch.equal(other.tokens, base.tokens)


def test_it_is_what_transformers_generates(engine, world, scenes, actions):
    tokens = engine.imagine(scenes, actions, Sampling(temperature=0)).tokens
    ids = world.prompt_ids(scenes.context, scenes.first)[1].tolist()
    for t in range(3):
        ids += world.action_ids(actions[1, 2, t]).tolist()
        for k in range(world.frame_tokens):
            with torch.no_grad():
                logits = world.transformer(torch.tensor([ids])).logits[0, -1, : world.frame_codes]
            ids.append(int(logits.argmax()))
            assert int(tokens[1, 2, t, k]) == ids[-1]


def test_wrong_actions_are_refused_by_name(engine, scenes, actions, expert):
    with pytest.raises(ShapeError, match=r"actions must be \[3,N,T,7\], got \[2, 4, 8, 7\]"):
        engine.imagine(scenes, actions[:2])
    with pytest.raises(ShapeError, match=r"actions: 16 actions a rollout; .* at most T = 8"):
        engine.imagine(scenes, torch.cat((actions, actions), 2))
    with pytest.raises(ShapeError, match=r"expert_actions must be \[3,8,7\]"):
        engine.imagine(scenes, actions, expert_actions=expert[:, :7])
    with pytest.raises(DtypeError, match="actions must be floating, in raw units"):
        engine.imagine(scenes, actions.int())
    bad = actions.clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="actions: NaN"):
        engine.imagine(scenes, bad)


def test_what_does_not_fit_is_refused_before_work(world, frames, actions):
    small = RolloutEngine(world, metric="lpips-alex", memory_limit="150MiB")
    with pytest.raises(
        PlanError, match=r"N = 4000 rollouts take .* the limit is 150.00 MiB; what fits"
    ):
        small.imagine(small.encode(frames), actions[:, :1].expand(-1, 4000, -1, -1))


def test_broken_weights_are_named(frames, actions):
    world = build_world("tiny")
    world.transformer.lm_head.weight.data[3] = float("inf")
    engine = RolloutEngine(world, metric="lpips-alex", memory_limit="1GiB")
    with pytest.raises(BackendError, match=r"imagine: logits of 12 rows are NaN or infinite"):
        engine.imagine(engine.encode(frames), actions)


def test_bfloat16_runs_and_progress_is_told(world, frames, actions):
    engine = RolloutEngine(world, metric="lpips-alex", dtype="bfloat16", memory_limit="1GiB")
    scenes, seen = engine.encode(frames), []
    tokens = engine.imagine(scenes, actions, progress=seen.append).tokens
    assert seen == list(range(1, 9))
    assert int(tokens.max()) < world.frame_codes
    assert engine.decode(scenes, tokens).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_tokens_of_the_cpu(world, engine, scenes, actions, frames):
    other = RolloutEngine(world, device="cuda", metric="lpips-alex", memory_limit="4GiB")
    tokens = other.imagine(other.encode(frames), actions).tokens.cpu()
    assert torch.equal(tokens, engine.imagine(scenes, actions).tokens)
