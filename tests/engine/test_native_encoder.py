"""The native encoders against the tokenizer they were made from."""

import pytest
import torch

from tests.random_tokenizers import random_config
from vlarft.demo import DEMOS, WORLD, load_windows
from vlarft.engine import RolloutEngine
from vlarft.engine.native_encoder import NativeEncoder
from vlarft.engine.team import Team
from vlarft.models.presets import build_tokenizer
from vlarft.models.world_model import WorldModel


def disturbed(config, seed):
    """A tokenizer whose biases and norms are not their initial values."""
    tokenizer = build_tokenizer(config, seed)
    for weight in tokenizer.parameters():
        random = torch.Generator().manual_seed(seed)
        weight.data += 0.1 * torch.randn(weight.shape, generator=random)
    return tokenizer


def latents(encoder, conditional, images, features):
    """Unquantised output of both encoders, plain torch's or ours."""
    if isinstance(encoder, torch.nn.Module):
        return encoder(images)[0], conditional(images, features)[0]
    rows = list(range(len(images)))
    return encoder.run(images, [], (), set())[0], conditional.run(images, rows, features, set())[0]


@torch.inference_mode()
@pytest.mark.parametrize("config", [*map(random_config, range(12)), "tiny", "small"])
def test_latents_are_as_exact_as_plain_torch(config):
    tokenizer = disturbed(config, 3)
    size = tokenizer.config.resolution
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    double = build_tokenizer(config, 3).double()
    double.load_state_dict({k: v.double() for k, v in tokenizer.state_dict().items()})
    truth = latents(
        double.encoder,
        double.cond_encoder,
        images.double(),
        double.encode_context(images.double())[1].attended,
    )
    attended = tokenizer.encode_context(images)[1].attended
    plain = latents(tokenizer.encoder, tokenizer.cond_encoder, images, attended)
    own = NativeEncoder(tokenizer, Team())
    native = latents(own._plain, own._conditional, images, own.encode_context(images)[1].attended)
    for true, p, n in zip(truth, plain, native, strict=True):
        scale = true.abs().mean()
        honest, error = ((x - true).square().mean().sqrt() / scale for x in (p, n))
        assert n.shape == true.shape
        assert error <= 2 * honest + 3e-6  # Winograd's transforms round more often


@torch.inference_mode()
def test_tokens_of_trained_weights():
    """At most one in a thousand falls on the other side of a quantiser's border."""
    world = WorldModel.from_pretrained(WORLD)
    tokenizer = world.tokenizer
    windows = load_windows([DEMOS], "val", world.layout).batch(torch.arange(0, 160, 10))
    pixels = windows.frames[:, :4].permute(0, 1, 4, 2, 3).float() / 255
    native = NativeEncoder(tokenizer, Team())
    context, features = tokenizer.encode_context(pixels[:, 0])
    own_context, own_features = native.encode_context(pixels[:, 0])
    assert (own_context == context).float().mean() >= 0.999
    frames = tokenizer.encode_frames(features, pixels[:, 1:])
    own_frames = native.encode_frames(own_features, pixels[:, 1:])
    assert own_frames.shape == frames.shape
    assert (own_frames == frames).float().mean() >= 0.999


def test_the_engine_encodes_natively_and_counts_its_weights(world):
    native = RolloutEngine(world, backend="native", metric="lpips-alex", memory_limit="1GiB")
    reference = RolloutEngine(world, backend="reference", metric="lpips-alex", memory_limit="1GiB")
    assert isinstance(native._parts.encoder, NativeEncoder)
    assert native.plan(1, 1).bytes["weights"] > native._parts.encoder.nbytes
    frames = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    ours, theirs = native.encode(frames), reference.encode(frames)
    assert (ours.context == theirs.context).float().mean() >= 0.99
    assert (ours.first == theirs.first).float().mean() >= 0.99
