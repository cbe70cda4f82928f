import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vlarft.errors import CheckpointError, ConfigError, DtypeError, ShapeError
from vlarft.models.folder import load_strict
from vlarft.models.presets import build_tokenizer
from vlarft.models.tokenizer import Tokenizer, tokenizer_config

SHARED = Path(__file__).parents[3] / "shared"
VECTORS = SHARED / "vectors" / "tokenizer_a.safetensors"
KEYS = SHARED / "vectors" / "official_keys.txt"


@pytest.fixture(scope="module")
def tiny():
    return build_tokenizer("tiny", seed=1)


@pytest.fixture
def pixels():
    return torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif(not VECTORS.exists(), reason=f"{VECTORS} is not at hand")
def test_official_vectors():
    with safe_open(VECTORS, "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no mapping
        config = json.loads(file.metadata()["config"])
    tokenizer = Tokenizer(tokenizer_config(config)).eval()
    weights = {k[8:]: v for k, v in tensors.items() if k.startswith("weights.")}
    load_strict(tokenizer, weights, "vectors")
    with torch.inference_mode():
        context, frames = tokenizer.tokenize(tensors["pixels_u8"].float() / 255)
        expected = tensors["context_tokens"].flatten(1), tensors["dynamics_tokens"]
        equal = torch.cat([(context == expected[0]).flatten(), (frames == expected[1]).flatten()])
        assert equal.float().mean() >= 0.995
        pixels = tokenizer.detokenize(expected[0].long(), expected[1].long())
        recorded = tensors["frames"].float()
        assert (pixels - recorded[:, 1:]).abs().mean() < 1e-3
        given = tokenizer.decode_context(expected[0].long())
        assert (given - recorded[:, 0]).abs().mean() < 1e-3


def test_paper_size_has_the_official_parameters_and_keys():
    with torch.device("meta"):
        tokenizer = Tokenizer()
    state = tokenizer.state_dict()
    assert sum(p.numel() for p in tokenizer.parameters()) == 128_792_656
    assert len(state) == 506
    assert (tokenizer.context_tokens, tokenizer.frame_tokens) == (1024, 64)
    if KEYS.exists():
        official = dict(line.split(" ", 1) for line in KEYS.read_text().splitlines())
        assert {k: str(tuple(v.shape)) for k, v in state.items()} == official


@pytest.mark.parametrize(
    ("change", "context", "frame"),
    [
        ({}, 64, 4),
        ({"resolution": 64, "max_att_resolution": 16}, 256, 16),
        ({"patch_size": 2}, 64, 16),
    ],
)
def test_lengths_follow_from_the_configuration(tiny, change, context, frame):
    values = tiny.config.model_dump() | change
    tokenizer = Tokenizer(tokenizer_config(values)).eval()
    size = tokenizer.config.resolution
    a, b = tokenizer.tokenize(torch.rand(1, 3, 3, size, size))
    assert (a.shape, b.shape) == ((1, context), (1, 2, frame))
    assert tokenizer.detokenize(a, b).shape == (1, 2, 3, size, size)


def test_frames_depend_on_their_context_and_not_on_each_other(tiny, pixels):
    with torch.inference_mode():
        context, frames = tiny.tokenize(pixels)
        alone = tiny.tokenize(pixels[:, [0, 2]])[1]
        assert torch.equal(frames[:, 1:2], alone)
        features = tiny.decoder_features(context)
        video = tiny.decode_frames(features, frames)
        single = tiny.decode_frames(features.select(torch.tensor([1])), frames[1:, 2:])
        torch.testing.assert_close(video[1:, 2:], single)
        other = tiny.decode_frames(features.select(torch.tensor([1, 0])), frames)
        assert (other - video).abs().max() > 1e-4


def test_training_forward_equals_the_token_path(tiny, pixels):
    with torch.inference_mode():
        context, frames = tiny(pixels)
        tokens = tiny.tokenize(pixels)
        torch.testing.assert_close(frames, tiny.detokenize(*tokens), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(context, tiny.decode_context(tokens[0]), atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_weight(pixels):
    tokenizer = build_tokenizer("tiny").train()
    context, frames = tokenizer(pixels)
    (context.square().mean() + frames.square().mean()).backward()
    without = [k for k, p in tokenizer.named_parameters() if p.grad is None]
    assert without == []


def test_folder_round_trip_and_strict_loading(tiny, pixels, tmp_path):
    tiny.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert torch.equal(again.tokenize(pixels)[1], tiny.tokenize(pixels)[1])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(CheckpointError, match=r"missing \d+ \['cond_decoder"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        Tokenizer.from_pretrained(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 100}, "multiple of 16"),
        ({"max_att_resolution": 4}, "must be the latent size 8"),
        ({"dyn_fsq_levels": [4, 4]}, "odd and at least 3"),
        ({"dyn_fsq_levels": 11}, "level set 11 is unknown"),
        ({"in_channels": 4}, "in_channels = 4; allowed: 3"),
        ({"resolutoin": 32}, "did you mean 'resolution'"),
    ],
)
def test_bad_configurations_are_named(tiny, change, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer_config(tiny.config.model_dump() | change)


def test_bad_pixels_are_named(tiny):
    with pytest.raises(ShapeError, match=r"must be \[B,1\+T,3,32,32\], got \[1, 2, 3, 16, 16\]"):
        tiny.tokenize(torch.rand(1, 2, 3, 16, 16))
    with pytest.raises(DtypeError, match="divide uint8 by 255"):
        tiny.tokenize(torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8))
