import pytest
import torch

from vlarft.engine import RolloutEngine
from vlarft.errors import BackendError, DataError, DtypeError, ShapeError
from vlarft.models.presets import build_world


def random_tokens(engine, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (*shape, engine.world.frame_tokens)
    return torch.randint(0, engine.world.frame_codes, shape, generator=generator)


def test_frames_are_the_detokenized_ones_clamped(engine, world, scenes):
    tokens = random_tokens(engine, 3, 2, 5)
    out = engine.decode(scenes, tokens)
    assert out.shape == (3, 2, 5, 3, 32, 32)
    for n in range(2):
        with torch.no_grad():
            truth = world.tokenizer.detokenize(scenes.context, tokens[:, n]).clamp(0, 1)
        assert torch.allclose(out[:, n], truth, atol=1e-5)


def test_pixels_are_clamped_to_the_unit_range(frames):
    world = build_world("tiny")
    for name, weight in world.tokenizer.cond_decoder.named_parameters():
        if name.startswith("conv_out"):
            weight.data.mul_(100)
    engine = RolloutEngine(world, metric="lpips-alex", memory_limit="1GiB")
    out = engine.decode(engine.encode(frames), random_tokens(engine, 3, 1, 2))
    assert float(out.min()) == 0
    assert float(out.max()) == 1


def test_equal_frames_of_a_scene_are_rendered_once(engine, scenes, monkeypatch):
    rendered = []
    original = engine._parts.decoder.decode_frames

    def counting(features, tokens):
        rendered.append(tokens.shape[0] * tokens.shape[1])
        return original(features, tokens)

    monkeypatch.setattr(engine._parts.decoder, "decode_frames", counting)
    tokens = random_tokens(engine, 3, 1, 2).expand(-1, 4, -1, -1)
    out = engine.decode(scenes, tokens)
    assert sum(rendered) == 6
    assert torch.equal(out[:, 3], out[:, 0])
    # the same tokens in another scene are another frame
    rendered.clear()
    everywhere = engine.decode(scenes, tokens[:1].expand(3, -1, -1, -1))
    assert sum(rendered) == 6
    assert not torch.equal(everywhere[0], everywhere[1])


def test_micro_batches_render_the_same(world, engine, frames, scenes):
    small = RolloutEngine(world, metric="lpips-alex", memory_limit="12MiB")
    assert small._planner.decode_batch < 8 < engine._planner.decode_batch
    tokens = random_tokens(engine, 3, 2, 4)
    expected = engine.decode(scenes, tokens)
    assert torch.allclose(small.decode(small.encode(frames), tokens), expected, atol=1e-5)


def test_wrong_tokens_are_refused(engine, scenes):
    tokens = random_tokens(engine, 3, 2, 4)
    with pytest.raises(ShapeError, match=r"tokens must be \[3,N,T,"):
        engine.decode(scenes, tokens[:, 0])
    with pytest.raises(DataError, match=r"tokens must lie in \[0, 75\), got .* 99"):
        engine.decode(scenes, tokens.clamp(min=99))
    with pytest.raises(DtypeError, match="tokens must be integers"):
        engine.decode(scenes, tokens.float())


def test_a_decoder_that_gives_nan_is_named(frames):
    world = build_world("tiny")
    world.tokenizer.post_quant_linear.weight.data[0] = float("nan")
    engine = RolloutEngine(world, metric="lpips-alex", memory_limit="1GiB")
    with pytest.raises(BackendError, match="decoder produced NaN"):
        engine.decode(engine.encode(frames), random_tokens(engine, 3, 1, 1))
