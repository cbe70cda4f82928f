"""Token generation on a GPU; what a machine without one can check is in cuda_emulated_test."""

import pytest
import torch

from tests.imagine.test_native import CODES, GUESS_SOURCES, POSITIONS, draw, llama, random_ids
from vlarft import _native
from vlarft.engine.native import Generator, unsupported
from vlarft.engine.speculate import Shape
from vlarft.errors import BackendError, UnsupportedModelError

PROMPT, FRAMES, ACTIONS, TOKENS = 150, 2, 7, 9
gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and _native.build_info()["cuda"]),
    reason="no CUDA GPU, or a build without CUDA code",
)


FLOAT8 = torch.float8_e4m3fn


def generators(seed=1, dtype=torch.float32, cache=None, **options):
    """The same model on the CPU and on the GPU."""
    model = llama(seed, **options)
    gpu = torch.device("cuda", torch.cuda.current_device())
    return [
        Generator(model, CODES, POSITIONS, dtype, device, cache)
        for device in (torch.device("cpu"), gpu)
    ]


def imagined(generator, scenes, members, *, width=1, seed=3, first=0, **sampling):
    """Tokens and stats of scenes first .. first + scenes - 1."""
    prompts = generator.prefill(random_ids(3, PROMPT, seed=seed)[first : first + scenes])
    actions = random_ids(3, members, FRAMES, ACTIONS, seed=seed + 1)[first : first + scenes]
    drawn = draw(3, members, **sampling)
    drawn = type(drawn)(**{**vars(drawn), "keys": drawn.keys[first : first + scenes]})
    guesses = GUESS_SOURCES if width > 1 else ()
    return generator.imagine(prompts, actions, TOKENS, drawn, width=width, guesses=guesses)


def test_heads_that_are_too_wide_are_refused():
    config = llama(1, hidden_size=288, num_attention_heads=2, num_key_value_heads=2).config
    reasons = unsupported(config, torch.device("cuda", 0))
    assert reasons == ["head_dim = 144 (supported on a GPU: at most 128)"]
    assert unsupported(config) == []


def test_scores_are_refused_on_a_gpu():
    generator = Generator(llama(1), CODES, POSITIONS, torch.float32)
    prompts = generator.prefill(random_ids(1, 3, seed=1))
    generator._device = torch.device("cuda", 0)
    with pytest.raises(BackendError, match="score: runs on a CPU only"):
        generator.score(prompts, random_ids(1, 1, 2, seed=2), chunk=1)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 1}, {"hidden_size": 96}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cache", [None, FLOAT8])
def test_small_models_give_the_tokens_of_the_cpu(options, temperature, cache):
    cpu, cuda = generators(cache=cache, **options)
    expected, _ = imagined(cpu, 3, 4, temperature=temperature)
    tokens, stats = imagined(cuda, 3, 4, temperature=temperature)
    assert torch.equal(tokens.cpu(), expected)
    assert stats["kernels"] == "cuda"


@gpu
@pytest.mark.gpu
def test_a_small_rollout_of_one_row_gives_the_tokens_of_the_cpu():
    """Its tokens are drawn by the kernel of the logits."""
    cpu, cuda = generators()
    for width in (1, 4):
        expected, _ = imagined(cpu, 1, 1, width=width)
        for _ in range(2):  # captured, then replayed
            assert torch.equal(imagined(cuda, 1, 1, width=width)[0].cpu(), expected)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("cache", [None, FLOAT8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_do_not_depend_on_batch_mates_or_width(dtype, cache):
    _, cuda = generators(dtype=dtype, cache=cache)
    whole, _ = imagined(cuda, 3, 24)
    for scene in range(3):
        assert torch.equal(imagined(cuda, 1, 24, first=scene)[0][0], whole[scene])
    for width in (2, 4, 8):
        tokens, stats = imagined(cuda, 3, 24, width=width)
        assert torch.equal(tokens, whole)
        assert stats["width"] == width
    assert torch.equal(imagined(cuda, 3, 24)[0], whole)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("width", [1, 4])
def test_a_loop_on_the_device_gives_the_tokens_of_a_host_that_launches_each_pass(
    width, monkeypatch
):
    _, cuda = generators()
    looped, stats = imagined(cuda, 2, 3, width=width)
    monkeypatch.setenv("VLARFT_CUDA_PASSES", "1")
    by_host, host_stats = imagined(cuda, 2, 3, width=width)
    assert torch.equal(looped, by_host)
    assert stats["passes"] == host_stats["passes"]


@gpu
@pytest.mark.gpu
def test_runs_on_the_callers_stream():
    _, cuda = generators()
    expected, _ = imagined(cuda, 2, 3)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tokens, _ = imagined(cuda, 2, 3)
        twice = tokens + tokens  # queued behind, without waiting
    stream.synchronize()
    assert torch.equal(twice, 2 * expected)


@gpu
@pytest.mark.gpu
def test_memory_is_planned_and_given_back():
    _, cuda = generators()
    shape = Shape(2, 3, PROMPT, FRAMES, ACTIONS, TOKENS)
    plan = cuda.plan(shape)
    imagined(cuda, 2, 3)
    assert cuda.held_bytes == plan["suffix keys and values"] + plan["work"]
    cuda.release()
    assert cuda.held_bytes == 0
    assert cuda.rates().seconds[0] > 0
    assert cuda.capture_seconds > 0


@gpu
@pytest.mark.gpu
def test_a_float8_cache_takes_half_of_bfloat16s():
    shape = Shape(2, 3, PROMPT, FRAMES, ACTIONS, TOKENS)
    plans = [
        generators(dtype=torch.bfloat16, cache=cache)[1].plan(shape) for cache in (FLOAT8, None)
    ]
    for part in ("prompt keys and values", "suffix keys and values"):
        assert 2 * plans[0][part] == plans[1][part]


@gpu
@pytest.mark.gpu
def test_float8_caches_widen_exactly():
    """Zero, subnormal and normal entries: bfloat16's tokens on the GPU are near the CPU's."""
    cpu, cuda = generators(dtype=torch.bfloat16, cache=FLOAT8)
    expected, _ = imagined(cpu, 3, 24, temperature=0.0)
    tokens, _ = imagined(cuda, 3, 24, temperature=0.0)
    assert (tokens.cpu() == expected).float().mean() > 0.8  # rounding moves near ties


@gpu
@pytest.mark.gpu
def test_wide_heads_are_refused_before_anything_is_taken():
    with pytest.raises(UnsupportedModelError, match="head_dim = 144"):
        generators(hidden_size=288, num_attention_heads=2, num_key_value_heads=2)
