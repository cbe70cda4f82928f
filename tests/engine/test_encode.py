import numpy as np
import pytest
import torch

from vlarft.engine import RolloutEngine, Scenes
from vlarft.errors import DataError, DtypeError, ShapeError


def test_tokens_are_the_tokenizers_own(engine, frames, scenes, world):
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        context, tokens = world.tokenizer.tokenize(torch.stack((pixels, pixels), 1))
    assert torch.equal(scenes.context, context)
    assert torch.equal(scenes.first, tokens[:, 0])
    assert scenes.keys.tolist() == [0, 1, 2]
    assert torch.equal(engine.encode(frames.numpy()).context, context)


def test_micro_batches_give_the_same_tokens(world, frames, scenes):
    small = RolloutEngine(world, metric="lpips-alex", memory_limit="16MiB")
    assert torch.equal(small.encode(frames).context, scenes.context)


def test_wrong_frames_are_refused(engine, frames):
    with pytest.raises(ShapeError, match=r"frames must be \[P,32,32,3\], got \[3, 3, 32, 32\]"):
        engine.encode(frames.permute(0, 3, 1, 2))
    with pytest.raises(ShapeError, match="got"):
        engine.encode(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ShapeError, match="got"):
        engine.encode(frames[:0])
    with pytest.raises(DtypeError, match="must be uint8"):
        engine.encode(frames.float() / 255)


def test_slices_and_joins_keep_keys_and_caches(engine, frames, actions):
    scenes = engine.encode(frames, keys=[7, 2**32 - 1, 9])
    engine.imagine(scenes, actions)
    part = scenes[1:]
    assert part.keys.tolist() == [2**32 - 1, 9]
    assert part.prefix is not None
    joined = Scenes.concatenate([scenes[torch.tensor([2])], scenes[0], scenes[[1]]])
    assert joined.keys.tolist() == [9, 7, 2**32 - 1]
    order = [2, 0, 1]
    assert torch.equal(joined.context, scenes.context[order])
    assert torch.equal(joined.prefix.keys, scenes.prefix.keys[:, order])
    assert torch.equal(
        engine.imagine(joined, actions[order]).tokens, engine.imagine(scenes, actions).tokens[order]
    )
    assert scenes[-1].keys.tolist() == [9]
    with pytest.raises(IndexError):
        scenes[3]
    mixed = Scenes.concatenate([scenes, engine.encode(frames)])
    assert mixed.prefix is None
    assert len(mixed) == 6


def test_keys_are_checked(engine, frames):
    with pytest.raises(ShapeError, match=r"keys must be \[3\]"):
        engine.encode(frames, keys=[1, 2])
    with pytest.raises(DataError, match=r"keys must lie in \[0, 2\^32\)"):
        engine.encode(frames, keys=[0, 1, 2**32])
    with pytest.raises(DtypeError, match="keys must be integers"):
        engine.encode(frames, keys=torch.tensor([0.0, 1.0, 2.0]))


def test_scenes_from_tokens(engine, scenes, actions):
    same = engine.scenes_from_tokens(scenes.context.int(), scenes.first)
    assert torch.equal(engine.imagine(same, actions).tokens, engine.imagine(scenes, actions).tokens)
    with pytest.raises(DataError, match=r"first must lie in \[0, 75\)"):
        engine.scenes_from_tokens(scenes.context, scenes.first + 75)
    with pytest.raises(ShapeError, match="context must be"):
        engine.scenes_from_tokens(scenes.context[:, 1:], scenes.first)
    with pytest.raises(DtypeError, match="context must be integers"):
        engine.scenes_from_tokens(scenes.context.float(), scenes.first)


def test_scenes_of_one_engine_are_computed_anew_by_another(engine, world, frames, actions):
    scenes = engine.encode(frames)
    engine.imagine(scenes, actions)
    other = RolloutEngine(
        world, backend="reference", metric="lpips-alex", dtype="bfloat16", memory_limit="1GiB"
    )
    other.imagine(scenes, actions)
    assert scenes.prefix.keys.dtype == torch.bfloat16
