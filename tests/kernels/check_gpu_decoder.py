"""The decoder around the kernels against the tokenizer it was made from; run by test_kernels.py."""

import copy

import pytest
import torch

from tests.random_tokenizers import random_config
from vlarft.engine.gpu_decoder import GpuDecoder
from vlarft.models.presets import build_tokenizer
from vlarft.reference.decode import decode

# numpy, which interprets, warns where exp(-y) is infinite: beyond the borders.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def tokenizer_and_input(config, seed, device, frames=3):
    """A tokenizer with weights that are not its initial ones, context [3,K0], scene, tokens."""
    tokenizer = build_tokenizer(config, seed)
    g = torch.Generator().manual_seed(seed)
    for weight in tokenizer.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=g)
    context = torch.randint(0, tokenizer.context_codes, (3, tokenizer.context_tokens), generator=g)
    tokens = torch.randint(0, tokenizer.frame_codes, (frames, tokenizer.frame_tokens), generator=g)
    scene = torch.tensor([0, 2, 1])[:frames]
    return tokenizer.to(device), context.to(device), scene.to(device), tokens.to(device)


@torch.inference_mode()
def rendered(config, seed, dtype, device):
    """Truth (float64), plain torch in `dtype`, and the decoder, of some frames."""
    tokenizer, context, scene, tokens = tokenizer_and_input(config, seed, device, frames=2)
    double, low = copy.deepcopy(tokenizer).double(), copy.deepcopy(tokenizer).to(dtype)
    truth = decode(double, double.decoder_features(context), scene, tokens)
    features = low.decoder_features(context)
    decoder = GpuDecoder(tokenizer, dtype, low.decoder_features, batch=1)
    return truth, decode(low, features, scene, tokens), decoder.decode(features, scene, tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", ["tiny", 1])
def test_frames_are_as_exact_as_plain_torch(config, dtype, device):
    seed = 3 if config == "tiny" else config
    config = config if config == "tiny" else random_config(config)
    truth, plain, own = rendered(config, seed, dtype, device)
    honest, error = ((x - truth).square().mean().sqrt() for x in (plain, own))
    assert own.shape == truth.shape
    assert own.dtype == torch.float32
    assert error <= 2 * honest + 1e-6, f"{error} against {honest}"


@torch.inference_mode()
def test_frames_do_not_depend_on_batch_mates(device):
    tokenizer, context, scene, tokens = tokenizer_and_input("tiny", 1, device)
    decoder = GpuDecoder(tokenizer, torch.float32, tokenizer.decoder_features, batch=2)
    features = decoder.decoder_features(context)
    whole = decoder.decode(features, scene, tokens)
    for i in (0, 2):
        alone = decoder.decode(features, scene[i : i + 1], tokens[i : i + 1])
        assert torch.allclose(alone[0], whole[i], atol=1e-5)


@torch.inference_mode()
def test_the_tokenizer_is_left_alone_and_nan_is_seen(device):
    tokenizer, context, scene, tokens = tokenizer_and_input("tiny", 2, device, frames=1)
    before = copy.deepcopy(tokenizer.state_dict())
    decoder = GpuDecoder(tokenizer, torch.float32, tokenizer.decoder_features, batch=1)
    features = decoder.decoder_features(context)
    first = decoder.decode(features, scene, tokens)
    assert all(torch.equal(v, before[k]) for k, v in tokenizer.state_dict().items())
    tokenizer.cond_decoder.conv_out.weight.zero_()  # no longer the decoder's weights
    assert torch.equal(decoder.decode(features, scene, tokens), first)
    features.attended.value[0, 0, 0, 0] = float("nan")
    assert bool(decoder.decode(features, scene, tokens).isnan().any())
    assert decoder.kernels == "triton"
    assert decoder.nbytes > 4 * tokenizer.cond_decoder.conv_in.weight.numel()
