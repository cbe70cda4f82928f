import logging
from types import SimpleNamespace

import pytest
import torch

from vlarft.engine import RolloutEngine, Sampling, resolve, stats
from vlarft.errors import BackendError, CheckpointError, ConfigError, DataError, ShapeError


def test_expert_against_itself_is_exactly_zero(engine, scenes, actions, expert):
    group = actions.clone()
    group[:, 1] = expert
    result = engine.rollout(scenes, group, expert)
    assert (result.l1[:, 1] == 0).all()
    assert (result.perceptual[:, 1] == 0).all()
    assert (result.l1[:, 0].mean(-1) > 0).all()
    # greedy needs no noise at all
    greedy = engine.rollout(scenes, group, expert, Sampling(temperature=0, noise="independent"))
    assert (greedy.l1[:, 1] == 0).all()


def test_rollouts_that_are_all_the_expert(engine, scenes, expert):
    result = engine.rollout(scenes, expert[:, None].expand(-1, 2, -1, -1), expert, keep=("frames",))
    assert (result.l1 == 0).all()
    assert torch.equal(result.frames[:, 1], result.expert_frames)
    assert result.stats["frames_rendered"] <= 3 * 8


def test_independent_noise_separates_the_expert_from_itself(engine, scenes, expert):
    sampling = Sampling(noise="independent", top_p=1.0)
    result = engine.rollout(scenes, expert[:, None], expert, sampling)
    assert (result.l1.mean(-1) > 0).all()


def test_the_experts_own_actions_make_its_frames(engine, scenes, actions, expert):
    """The official code never showed the expert's actions to the expert's branch."""

    def frames(expert_actions):
        return engine.rollout(scenes, actions, expert_actions, keep=("frames",)).expert_frames

    base = frames(expert)
    one_changed = expert.clone()
    one_changed[:, 0] = -one_changed[:, 0]
    assert not torch.equal(frames(one_changed), base)
    assert not torch.equal(frames(expert.roll(1, 0)), base)
    result = engine.rollout(scenes, expert[:, None], expert.roll(1, 0))
    assert (result.l1.mean((1, 2)) > 0).all()


def test_some_times_are_compared_as_they_are_among_all(engine, scenes, actions, expert):
    whole = engine.rollout(scenes, actions, expert, keep=("tokens",))
    some = engine.rollout(scenes, actions, expert, keep=("tokens",), times=(3, 7))
    assert torch.equal(some.tokens, whole.tokens)
    assert torch.allclose(some.l1, whole.l1[..., [3, 7]], atol=1e-6)
    assert torch.allclose(some.perceptual, whole.perceptual[..., [3, 7]], atol=1e-6)
    assert some.stats["frames_rendered"] < whole.stats["frames_rendered"]
    recorded = torch.rand(len(scenes), 8, *_sides(engine))
    whole = engine.rollout(scenes, actions, reference=recorded)
    some = engine.rollout(scenes, actions, reference=recorded, times=(0, 7))
    assert torch.allclose(some.l1, whole.l1[..., [0, 7]], atol=1e-6)


@pytest.mark.parametrize("times", [(), (3, 1), (2, 2), (-1,), (8,)])
def test_wrong_times_are_refused(engine, scenes, actions, expert, times):
    with pytest.raises(ConfigError, match=r"increasing frame numbers within 0\.\.7"):
        engine.rollout(scenes, actions, expert, times=times)


def test_kept_frames_are_all_frames(engine, scenes, actions, expert):
    with pytest.raises(ConfigError, match="leave times out"):
        engine.rollout(scenes, actions, expert, times=(7,), keep=("frames",))


def _sides(engine):
    side = engine.world.tokenizer.config.resolution
    return 3, side, side


def test_rollout_is_the_four_stages(engine, scenes, actions, expert):
    sampling = Sampling(seed=4)
    result = engine.rollout(scenes, actions, expert, sampling, keep=("tokens", "frames"))
    imagined = engine.imagine(scenes, actions, sampling, expert_actions=expert)
    assert torch.equal(result.tokens, imagined.tokens)
    assert torch.equal(result.expert_tokens, imagined.expert_tokens)
    frames = engine.decode(scenes, imagined.tokens)
    reference = engine.decode(scenes, imagined.expert_tokens[:, None])[:, 0]
    assert torch.allclose(result.frames, frames, atol=1e-5)
    assert torch.allclose(result.expert_frames, reference, atol=1e-5)
    distances = engine.compare(frames, reference)
    assert torch.allclose(result.l1, distances.l1, atol=1e-5)
    assert torch.allclose(result.perceptual, distances.perceptual, atol=1e-4)


@pytest.mark.parametrize("limit", ["2GiB", "140MiB"])
def test_recorded_reference(world, frames, actions, limit):
    engine = RolloutEngine(world, metric="lpips-alex", memory_limit=limit)
    scenes = engine.encode(frames)
    recorded = torch.rand(3, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result = engine.rollout(scenes, actions, reference=recorded, keep=("frames", "tokens"))
    assert result.expert_tokens is None
    assert result.expert_frames is None
    distances = engine.compare(result.frames, recorded)
    assert torch.allclose(result.l1, distances.l1, atol=1e-6)
    assert torch.allclose(result.perceptual, distances.perceptual, atol=1e-5)
    assert result.stats["tokens"] == 3 * 4 * 8 * world.frame_tokens


def test_scene_groups_and_micro_batches_change_nothing(
    engine, world, frames, scenes, actions, expert, monkeypatch
):
    whole = engine.rollout(scenes, actions, expert, keep=("frames",))
    monkeypatch.setattr("vlarft.engine.plan.batch_size", lambda *_: 2)
    small = RolloutEngine(world, metric="lpips-alex", memory_limit="2GiB")
    parts = small.rollout(small.encode(frames), actions, expert, keep=("frames",))
    assert torch.allclose(parts.l1, whole.l1, atol=1e-6)
    assert torch.allclose(parts.perceptual, whole.perceptual, atol=1e-5)
    assert torch.allclose(parts.frames, whole.frames, atol=1e-5)
    assert torch.allclose(parts.expert_frames, whole.expert_frames, atol=1e-5)


def test_several_seeds_are_averaged(engine, scenes, actions, expert):
    result = engine.rollout(scenes, actions, expert, seeds=(3, 8))
    single = [engine.rollout(scenes, actions, expert, Sampling(seed=s)).l1 for s in (3, 8)]
    assert torch.equal(result.l1_by_seed, torch.stack(single))
    assert torch.equal(result.l1, torch.stack(single).mean(0))
    assert result.perceptual_by_seed.shape == (2, 3, 4, 8)
    assert not torch.equal(*single)
    with pytest.raises(ConfigError, match="seed = -1"):
        engine.rollout(scenes, actions, expert, seeds=(-1,))
    with pytest.raises(ConfigError, match="exactly one with keep"):
        engine.rollout(scenes, actions, expert, seeds=(1, 2), keep=("tokens",))


def test_stats_count_what_was_done(engine, world, scenes, actions, expert):
    group = actions[:, :1].expand(-1, 4, -1, -1)
    stats = engine.rollout(scenes, group, expert).stats
    assert set(stats["seconds"]) == {"prefill", "imagine", "decode", "compare", "total"}
    assert stats["passes"] == 8 * world.frame_tokens
    assert stats["tokens"] == 3 * 5 * stats["passes"]
    assert stats["frames"] == 3 * 5 * 8
    assert stats["frames_rendered"] <= 3 * 2 * 8
    assert stats["frames_deduplicated"] == stats["frames"] - stats["frames_rendered"]
    assert stats["planned_bytes"] > 0 < stats["peak_bytes"]


def test_only_what_is_asked_for_is_kept(engine, scenes, actions, expert):
    result = engine.rollout(scenes, actions, expert)
    assert (result.tokens, result.frames, result.expert_tokens, result.expert_frames) == (None,) * 4
    with pytest.raises(ConfigError, match=r"keep = \['pixels'\]; allowed: tokens, frames"):
        engine.rollout(scenes, actions, expert, keep=("pixels",))


def test_results_may_be_used_in_autograd(engine, scenes, actions, expert):
    result = engine.rollout(scenes, actions, expert, keep=("tokens", "frames"))
    weight = torch.ones((), requires_grad=True)
    loss = (weight * result.l1).sum() + (weight * result.frames).sum()
    table = torch.nn.Embedding(engine.world.frame_codes, 2)
    (loss + table(result.tokens).sum() + table(scenes.first).sum()).backward()
    assert weight.grad is not None


def test_exactly_one_reference_is_needed(engine, scenes, actions, expert):
    recorded = torch.rand(3, 8, 3, 32, 32)
    with pytest.raises(ConfigError, match="either expert_actions or reference"):
        engine.rollout(scenes, actions)
    with pytest.raises(ConfigError, match="either expert_actions or reference"):
        engine.rollout(scenes, actions, expert, reference=recorded)
    with pytest.raises(DataError, match=r"reference: .* outside"):
        engine.rollout(scenes, actions, reference=recorded * 2)
    with pytest.raises(ShapeError, match="reference must be"):
        engine.rollout(scenes, actions, reference=recorded[..., :16])


def test_release_frees_what_is_cached(world, frames, actions, expert):
    with RolloutEngine(
        world, backend="reference", metric="lpips-alex", memory_limit="1GiB"
    ) as engine:
        scenes = engine.encode(frames)
        before = engine.rollout(scenes, actions, expert).l1
        assert engine._parts._suffix is not None
        assert scenes.prefix is not None
    assert engine._parts._suffix is None
    assert engine._parts._metric is None
    assert scenes.prefix is None
    assert scenes.decoder_features is None
    assert torch.equal(engine.rollout(scenes, actions, expert).l1, before)


def test_back_ends_devices_and_dtypes_are_chosen_loudly(world, caplog):
    with pytest.raises(BackendError, match=r"backend 'native' cannot run: attention = 'xformers'"):
        RolloutEngine(world, backend="native", attention="xformers")
    with pytest.raises(ConfigError, match="backend = 'fast'; allowed: auto, native, reference"):
        RolloutEngine(world, backend="fast")
    with pytest.raises(ConfigError, match="dtype = 'float16'; allowed: float32, bfloat16"):
        RolloutEngine(world, dtype="float16")
    with pytest.raises(ConfigError, match="device = 'tpu9'"):
        RolloutEngine(world, device="tpu9")
    with caplog.at_level(logging.INFO, logger="vlarft"):
        assert RolloutEngine(world, backend="auto").backend == "native"
    assert len(caplog.records) == 1
    assert "engine: native: " in caplog.text


def test_load_from_a_folder(engine, world, frames, actions, tmp_path):
    world.save_pretrained(tmp_path / "world")
    loaded = RolloutEngine.load(tmp_path / "world", metric="lpips-alex", memory_limit="1GiB")
    tokens = loaded.imagine(loaded.encode(frames), actions).tokens
    assert torch.equal(tokens, engine.imagine(engine.encode(frames), actions).tokens)
    with pytest.raises(CheckpointError, match="no such folder"):
        RolloutEngine.load(tmp_path / "nothing")


def test_the_callers_world_is_left_as_it_was(world, engine, frames, actions):
    world.train()
    try:
        trained = RolloutEngine(world, metric="lpips-alex", memory_limit="1GiB")
        assert world.tokenizer.training
        assert not trained.world.tokenizer.training
        assert all(p.requires_grad for p in world.parameters())
        tokens = trained.imagine(trained.encode(frames), actions).tokens
        assert torch.equal(tokens, engine.imagine(engine.encode(frames), actions).tokens)
    finally:
        world.eval()


def test_native_on_a_gpu_names_what_is_missing(world, monkeypatch):
    """On a machine without one: the reasons that do not need a GPU to be found."""
    monkeypatch.setattr(resolve, "_native", SimpleNamespace(build_info=_build_without_cuda))
    gpu = torch.device("cuda", 0)
    with pytest.raises(BackendError, match=r"this build has no CUDA code \(no nvcc; reinstall"):
        resolve.resolve_backend("native", gpu, "sdpa", world.transformer.config)
    chosen, reason = resolve.resolve_backend("auto", gpu, "sdpa", world.transformer.config)
    assert chosen == "reference"
    assert "no CUDA code" in reason


def _build_without_cuda():
    return {"cuda": False, "cuda_reason": "no nvcc"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_refused(world):
    with pytest.raises(
        BackendError, match="device 'cuda': PyTorch sees no CUDA GPU here; use 'cpu"
    ):
        RolloutEngine(world, device="cuda")


def test_ranges_nest_rollout_and_stages(engine, scenes, actions, expert, monkeypatch):
    """As nsys will show them, one below the other; nothing is pushed without VLARFT_NVTX=1."""
    depth, seen = [], []

    def push(name):
        seen.append("/".join([*depth, name]))
        depth.append(name)

    fake = SimpleNamespace(
        build_info=lambda: {"cuda": True}, range_push=push, range_pop=lambda: depth.pop()
    )
    monkeypatch.setattr(stats, "_native", fake)
    engine.rollout(scenes, actions, expert)
    assert seen == []
    monkeypatch.setenv("VLARFT_NVTX", "1")
    engine.rollout(scenes, actions, expert)
    stages = [f"rollout/{stage}" for stage in ("prefill", "imagine", "decode", "compare")]
    assert list(dict.fromkeys(seen)) == ["rollout", *stages]
    assert depth == []
