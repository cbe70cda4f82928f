"""The native decoder against the tokenizer it was made from."""

import os
import subprocess
import sys

import pytest
import torch

from tests.random_tokenizers import random_config
from vlarft import _native
from vlarft.engine import RolloutEngine
from vlarft.engine.native_decoder import NativeDecoder
from vlarft.engine.team import Team
from vlarft.models.presets import build_tokenizer, build_world
from vlarft.models.tokenizer import TokenizerConfig
from vlarft.reference.decode import decode


@torch.inference_mode()
def rendered(config, seed, dtype):
    """Truth (float64), plain torch in `dtype`, and the native decoder, of some frames."""
    tokenizer = build_tokenizer(config, seed)
    generator = torch.Generator().manual_seed(seed)
    for weight in tokenizer.parameters():  # biases and norms that are not their initial values
        weight.data += 0.1 * torch.randn(
            weight.shape, generator=torch.Generator().manual_seed(seed)
        )
    generator = torch.Generator().manual_seed(seed)
    scenes, frames = 3, 5
    context = torch.randint(
        0, tokenizer.context_codes, (scenes, tokenizer.context_tokens), generator=generator
    )
    tokens = torch.randint(
        0, tokenizer.frame_codes, (frames, tokenizer.frame_tokens), generator=generator
    )
    scene = torch.tensor([0, 0, 2, 1, 1])
    double = build_tokenizer(config, seed).double()
    double.load_state_dict({k: v.double() for k, v in tokenizer.state_dict().items()})
    truth = decode(double, double.decoder_features(context), scene, tokens)
    plain = build_tokenizer(config, seed).to(dtype)
    plain.load_state_dict(tokenizer.state_dict())
    features = plain.decoder_features(context)
    native = NativeDecoder(tokenizer, dtype, plain.decoder_features, Team())
    return truth, decode(plain, features, scene, tokens), native.decode(features, scene, tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_are_as_exact_as_plain_torch(dtype):
    for seed in range(12):
        truth, plain, native = rendered(random_config(seed), seed, dtype)
        honest, error = ((x - truth).square().mean().sqrt() for x in (plain, native))
        assert native.shape == truth.shape
        assert native.dtype == torch.float32
        assert error <= 2 * honest + 1e-6, f"case {seed}: {error} against {honest}"


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_presets(preset, dtype):
    truth, plain, native = rendered(preset, 3, dtype)
    honest, error = ((x - truth).square().mean().sqrt() for x in (plain, native))
    assert error <= 2 * honest + 1e-6
    assert torch.allclose(native, truth, atol=1e-4 if dtype == torch.float32 else 0.2)


def test_one_large_level_in_float32():
    """The paper's widths and depth at a quarter of its resolution."""
    config = TokenizerConfig(resolution=64, max_att_resolution=8)
    truth, plain, native = rendered(config, 1, torch.float32)
    assert (native - truth).abs().max() <= max(2 * (plain - truth).abs().max(), 2e-5)


@torch.inference_mode()
def test_frames_do_not_depend_on_batch_mates_or_threads():
    tokenizer = build_tokenizer("small", 2)
    g = torch.Generator().manual_seed(1)
    context = torch.randint(0, tokenizer.context_codes, (2, tokenizer.context_tokens), generator=g)
    tokens = torch.randint(0, tokenizer.frame_codes, (11, tokenizer.frame_tokens), generator=g)
    scene = torch.tensor([0] * 7 + [1] * 4)
    decoder = NativeDecoder(tokenizer, torch.float32, tokenizer.decoder_features, Team())
    features = decoder.decoder_features(context)
    assert decoder._easel.chunk < 11
    whole = decoder.decode(features, scene, tokens)
    for i in (0, 6, 7, 10):
        alone = decoder.decode(features, scene[i : i + 1], tokens[i : i + 1])
        assert torch.allclose(alone[0], whole[i], atol=1e-5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.allclose(decoder.decode(features, scene, tokens), whole, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_the_engine_says_what_runs_and_gives_memory_back():
    engine = RolloutEngine(
        build_world("tiny"), backend="native", metric="lpips-alex", memory_limit="1GiB"
    )
    path = engine.plan(1, 1).kernel_path
    assert f"{_native.Convolution(torch.ones(1, 1, 1, 1), torch.ones(1)).kernels} conv" in path
    frames = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    tokens = torch.randint(0, engine.world.frame_codes, (1, 1, 2, engine.world.frame_tokens))
    packed = engine._parts.decoder.nbytes
    engine.decode(engine.encode(frames), tokens)
    assert engine._parts.decoder.nbytes > packed
    engine.release()
    assert engine._parts.decoder.nbytes == packed


@pytest.mark.parametrize("name", _native.built_kernels())
def test_each_kernel_path_by_name(name):
    """VLARFT_CPU chooses the path in a fresh process; the path that ran is asserted."""
    if name not in _native.runnable_kernels():
        pytest.skip(f"this processor does not run {name}")
    code = """
import torch
from vlarft.engine.native_decoder import NativeDecoder
from vlarft.engine.team import Team
from vlarft.models.presets import build_tokenizer
from vlarft.reference.decode import decode
tokenizer = build_tokenizer("tiny", 1)
with torch.inference_mode():
    features = tokenizer.decoder_features(torch.arange(64)[None] % 75)
    tokens = torch.arange(8).view(2, 4)
    scene = torch.zeros(2, dtype=torch.int64)
    native = NativeDecoder(tokenizer, torch.float32, tokenizer.decoder_features, Team())
    difference = native.decode(features, scene, tokens) - decode(tokenizer, features, scene, tokens)
print(native.kernels, float(difference.abs().max()) < 1e-4)
"""
    environment = {**os.environ, "VLARFT_CPU": name, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == [name, "True"]
