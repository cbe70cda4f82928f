"""The native token generator against transformers, the reference back end and itself."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vlarft import _native
from vlarft.engine.native import GUESS_SOURCES, Generator, Prompts, unsupported
from vlarft.engine.speculate import Shape
from vlarft.errors import DtypeError, ShapeError, UnsupportedModelError, VlarftError
from vlarft.reference import imagine as reference
from vlarft.reference.attention import causal_attention
from vlarft.reference.imagine import Draw
from vlarft.reference.noise import SHARED_MEMBER, gumbel
from vlarft.reference.sample import kept_ids

CODES, VOCABULARY, POSITIONS = 37, 61, 400
CASES = int(
    os.environ.get("VLARFT_CASES", "60")
)  # random cases of bit-identity; 1000 take a minute


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(seed, **options):
    values = {
        "hidden_size": 36,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.15,
    } | options
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


def generator_of(model, dtype=torch.float32, cache=None):
    return Generator(model, CODES, POSITIONS, dtype, cache_dtype=cache)


def random_ids(*shape, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, shape, generator=g)


def draw(scenes, members, *, temperature=1.0, top_k=None, top_p=0.9, seed=3, shared=True):
    words = torch.tensor([SHARED_MEMBER]) if shared else torch.arange(members)
    keys = torch.arange(scenes) + 5
    return Draw(seed, temperature, top_k, top_p, keys, words)


@torch.inference_mode()
def uncached_logits(model, prompt, ids):
    """Logits after each of ids [P,M,L], from full forwards without a cache."""
    whole = torch.cat([prompt[:, None].expand(-1, ids.shape[1], -1), ids], dim=-1)
    logits = model(whole.flatten(0, 1), use_cache=False).logits
    return logits[:, prompt.shape[1] :, :CODES].view(*ids.shape, CODES)


MODELS = [
    {},
    {"num_attention_heads": 6, "num_key_value_heads": 2},  # grouped queries
    {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 10},
    {"tie_word_embeddings": True, "head_dim": 14},
    {"head_dim": 64, "hidden_size": 300, "intermediate_size": 530},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
    {"num_hidden_layers": 1, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8,
     "hidden_size": 40},
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("options", MODELS)
def test_greedy_equals_transformers(options, seed):
    model = llama(seed, **options)
    scenes, members, frames, width, tokens_a_frame = 2, 2, 2, 3, 9
    prompt = random_ids(scenes, 21, seed=seed)
    actions = random_ids(scenes, members, frames, width, seed=seed + 1)
    native = generator_of(model)
    greedy = draw(scenes, members, temperature=0.0)
    tokens, _ = native.imagine(native.prefill(prompt), actions, tokens_a_frame, greedy)
    steps = torch.cat([actions, tokens], dim=-1)
    logits = uncached_logits(model, prompt, steps.flatten(2)).view(*steps.shape, CODES)
    assert torch.equal(logits[..., width - 1 : -1, :].argmax(-1), tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize("head_dim", [12, 32])  # 32 fills the tiles of AMX
def test_cached_logits_equal_the_uncached_forward(dtype, length, head_dim):
    """At every step, across the borders of a 256-position tile, whatever the chunk."""
    model = llama(4, initializer_range=0.05, head_dim=head_dim)
    prompt, ids = random_ids(2, length, seed=1), random_ids(2, 2, 90, seed=2)
    native = generator_of(model, dtype)
    prompts = native.prefill(prompt)
    truth = uncached_logits(model, prompt, ids)
    whole = native.score(prompts, ids, chunk=90)
    rounded = llama(4, initializer_range=0.05, head_dim=head_dim).to(dtype)
    honest = uncached_logits(rounded, prompt, ids).float()
    # float32: rounding; bfloat16: no worse than twice what plain PyTorch loses.
    limit = 2e-5 if dtype == torch.float32 else 2 * (honest - truth).abs().max()
    assert (whole - truth).abs().max() <= limit
    for chunk in (1, 7):
        assert torch.equal(native.score(prompts, ids, chunk=chunk), whole)


@pytest.mark.parametrize("cache", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, 1.0), (None, 0.8), (7, 0.9)])
def test_tokens_equal_the_reference(shared, top_k, top_p, cache):
    model = llama(5)
    scenes, members, frames, tokens_a_frame = 2, 3, 3, 8
    prompt = random_ids(scenes, 33, seed=3)
    actions = random_ids(scenes, members, frames, 4, seed=4)
    settings = draw(scenes, members, top_k=top_k, top_p=top_p, shared=shared)
    cpu = torch.device("cpu")
    weights = reference.load_weights(model, CODES, POSITIONS, cpu, torch.float32, cache)
    with torch.inference_mode():
        sdpa = causal_attention("sdpa", cpu, torch.float32)
        prefix = reference.prefill(weights, prompt, sdpa)
        suffix = reference.Suffix(weights, scenes, members, frames * 12)
        expected = reference.imagine(weights, prefix, suffix, actions, tokens_a_frame, settings)
    native = generator_of(model, cache=cache)
    tokens, _ = native.imagine(native.prefill(prompt), actions, tokens_a_frame, settings)
    for scene, member in (tokens != expected).flatten(2).any(-1).nonzero().tolist():
        _explain(native, prompt, actions, tokens, expected, settings, (scene, member))


@pytest.mark.parametrize("options", MODELS)
def test_a_float8_cache_rounds_as_the_reference_does(options):
    """Logits step by step: grouped queries, wide heads, rotations that carry a factor."""
    model = llama(5, **options)
    prompt, ids = random_ids(1, 33, seed=3), random_ids(1, 2, 12, seed=4)
    cpu, cache = torch.device("cpu"), torch.float8_e4m3fn
    weights = reference.load_weights(model, CODES, POSITIONS, cpu, torch.float32, cache)
    native, plain = generator_of(model, cache=cache), generator_of(model)
    found = native.score(native.prefill(prompt), ids, chunk=5)
    with torch.inference_mode():
        sdpa = causal_attention("sdpa", cpu, torch.float32)
        prefix, suffix = (
            reference.prefill(weights, prompt, sdpa),
            reference.Suffix(weights, 1, 2, 12),
        )
        expected = torch.stack(
            [
                torch.nn.functional.linear(
                    reference.extend(weights, prefix, suffix, ids[0, :, step : step + 1]),
                    weights.head,
                )
                for step in range(12)
            ],
            dim=1,
        )
    cost = (plain.score(plain.prefill(prompt), ids, chunk=5)[0] - found[0]).abs().mean()
    assert 2e-3 < cost / expected.std() < 0.25
    # Sums in another order put an entry near a middle on its other side, here and there.
    assert (found[0] - expected).abs().mean() < cost / 4


def _explain(native, prompt, actions, tokens, expected, settings, place):
    """The first different token must be a near tie of scores, or of mass against top-p."""
    scene, member = place
    differs = (tokens[scene, member] != expected[scene, member]).flatten()
    first = int(differs.nonzero()[0])
    frame, position = divmod(first, tokens.shape[-1])
    steps = torch.cat([actions[scene, member], tokens[scene, member]], dim=-1)
    at = frame * steps.shape[-1] + actions.shape[-1] + position - 1
    prompts = native.prefill(prompt[scene : scene + 1])
    ids = steps.flatten()[None, None, : at + 1]
    logits = native.score(prompts, ids, chunk=1)[0, 0, -1] / settings.temperature
    word = settings.members.expand(tokens.shape[1])[member : member + 1]
    place = torch.tensor([first])
    noise = gumbel(settings.seed, settings.keys[scene : scene + 1], word, place, CODES)
    scores = logits + noise[0, 0, 0]
    ours, theirs = (
        int(tokens[scene, member].flatten()[first]),
        int(expected[scene, member].flatten()[first]),
    )
    near_score = float((scores[ours] - scores[theirs]).abs()) < 1e-4
    edges = [kept_ids(logits, settings.top_k, settings.top_p + d) for d in (-1e-4, 1e-4)]
    assert near_score or not torch.equal(*edges)


def _case(seed):
    """Tokens of one random request, computed plainly and in some other way."""
    rng = random.Random(seed)
    scenes, members = rng.randint(1, 3), rng.randint(1, 4)
    frames, tokens_a_frame, width = rng.randint(1, 3), rng.randint(1, 7), rng.randint(1, 4)
    prompt = random_ids(scenes, rng.choice((1, 16, 30)), seed=seed)
    actions = random_ids(scenes, members, frames, width, seed=seed + 1)
    shared = rng.random() < 0.5
    settings = draw(
        scenes, members, seed=rng.getrandbits(64), shared=shared,
        temperature=rng.choice((0.0, 0.7, 1.0)), top_p=rng.choice((0.5, 0.9, 1.0)),
        top_k=rng.choice((None, 5)),
    )  # fmt: skip
    return rng, prompt, actions, tokens_a_frame, settings


def test_tokens_never_depend_on_how_they_are_computed():
    """Batch mates, batch split, threads, W, guess sources, noise kind: equal without exception."""
    models = [
        generator_of(llama(6, num_attention_heads=6, num_key_value_heads=3, head_dim=6)),
        generator_of(llama(7), torch.bfloat16),
        generator_of(llama(7, num_key_value_heads=1), torch.bfloat16, torch.float8_e4m3fn),
        generator_of(llama(7, head_dim=32), torch.bfloat16),  # fills the tiles of AMX
    ]
    for seed in range(CASES):
        rng, prompt, actions, tokens_a_frame, settings = _case(seed)
        native = models[seed % len(models)]
        prompts = native.prefill(prompt)
        torch.set_num_threads(1)
        expected, _ = native.imagine(prompts, actions, tokens_a_frame, settings)
        torch.set_num_threads(rng.randint(1, 3))
        width = rng.randint(1, 6)
        sources = rng.sample(GUESS_SOURCES, rng.randint(0, len(GUESS_SOURCES)))
        scene = rng.randrange(prompt.shape[0])
        members = sorted(rng.sample(range(actions.shape[1]), rng.randint(1, actions.shape[1])))
        words = settings.members if settings.members.numel() == 1 else settings.members[members]
        alone = Draw(
            settings.seed, settings.temperature, settings.top_k, settings.top_p,
            settings.keys[scene : scene + 1], words,
        )  # fmt: skip
        again = native.prefill(prompt[scene : scene + 1])
        part, stats = native.imagine(
            again, actions[scene : scene + 1, members], tokens_a_frame, alone,
            width=width, guesses=sources,
        )  # fmt: skip
        assert torch.equal(part[0], expected[scene, members]), f"case {seed}"
        assert stats["passes"] <= actions.shape[2] * tokens_a_frame
        torch.set_num_threads(1)


def test_right_guesses_save_passes():
    """Nearly flat logits: the noise of a place decides, whatever the frame before was."""
    native = generator_of(llama(8, num_hidden_layers=1, initializer_range=0.02))
    prompt = random_ids(1, 10, seed=1)
    actions = random_ids(1, 1, 4, 3, seed=2).expand(1, 3, 4, 3)
    settings = draw(1, 3, top_p=1.0)
    prompts = native.prefill(prompt)
    plain, stats = native.imagine(prompts, actions, 16, settings)
    assert stats["passes"] == 64
    assert stats["accepted_per_pass"] == 1
    assert stats["wasted_tokens"] == 0
    guessed, stats = native.imagine(
        prompts, actions, 16, settings, width=4, guesses=("jacobi", "logits")
    )
    assert torch.equal(plain, guessed)
    right, tried = stats["guesses"]["logits"]
    assert 0 < right <= tried
    assert stats["passes"] < 64
    assert stats["accepted_per_pass"] > 1


def test_sampling_passes_chi_square():
    """8192 first tokens of one logit row, against softmax; 99.9 % point of chi^2, 36 degrees."""
    native = generator_of(llama(9, initializer_range=0.08))
    prompt, actions = random_ids(1, 5, seed=1), random_ids(1, 1, 1, 2, seed=2)
    prompts = native.prefill(prompt)
    logits = native.score(prompts, actions[:, :, 0], chunk=2)[0, 0, -1]
    draws = 8192
    settings = draw(1, draws, top_p=1.0, shared=False)
    tokens, _ = native.imagine(prompts, actions.expand(1, draws, 1, 2), 1, settings)
    expected = torch.softmax(logits.double(), -1) * draws
    assert expected.min() > 5
    counts = torch.bincount(tokens.flatten(), minlength=CODES)
    assert ((counts - expected) ** 2 / expected).sum() < 68


@pytest.mark.parametrize("name", _native.built_kernels())
def test_each_kernel_path_by_name(name):
    """VLARFT_CPU chooses the path in a fresh process; the path that ran is asserted."""
    if name not in _native.runnable_kernels():
        pytest.skip(f"this processor does not run {name}")
    code = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vlarft.engine.native import Generator
from vlarft.reference.imagine import Draw
torch.manual_seed(1)
model = LlamaForCausalLM(LlamaConfig(
    hidden_size=48, intermediate_size=70, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=3, vocab_size=50, max_position_embeddings=64, initializer_range=0.1)).eval()
prompt, actions = torch.randint(0, 50, (1, 20)), torch.randint(0, 50, (1, 17, 2, 3))
greedy = Draw(0, 0.0, None, 1.0, torch.zeros(1, dtype=torch.int64), torch.tensor([2**32 - 1]))
for dtype in (torch.float32, torch.bfloat16):
    native = Generator(model, 30, 64, dtype)
    tokens, stats = native.imagine(native.prefill(prompt), actions, 6, greedy)
    steps = torch.cat([actions, tokens], -1)
    whole = torch.cat([prompt.expand(17, -1), steps[0].flatten(1)], -1)
    with torch.inference_mode():
        logits = model(whole).logits[:, 20:, :30].view(17, 2, 9, 30)[:, :, 2:-1]
    best = logits.max(-1).values
    chosen = logits.gather(-1, tokens[0][..., None])[..., 0]
    assert (best - chosen).max() <= (0 if dtype == torch.float32 else 0.2), (best - chosen).max()
    print(stats["kernels"], native.kernels)
"""
    ran = _run(code, name)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [name] * 4


@pytest.mark.parametrize("name", ["avx9", "amx"])
def test_unknown_or_unsupported_path_is_an_error(name):
    if name in _native.runnable_kernels():
        pytest.skip(f"this processor runs {name}")
    code = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vlarft.engine.native import Generator
config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                     num_attention_heads=1, vocab_size=9)
Generator(LlamaForCausalLM(config), 5, 9, torch.float32)
"""
    ran = _run(code, name)
    assert ran.returncode != 0
    last = ran.stderr.strip().splitlines()[-1]
    assert f"VLARFT_CPU = '{name}'" in last
    assert "built: amx, avx512_bf16, avx512, avx2, portable" in last
    assert "this machine runs:" in last


def _run(code, name):
    environment = {**os.environ, "VLARFT_CPU": name, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_two_engines_in_two_threads():
    engines = [generator_of(llama(10)), generator_of(llama(11))]
    actions, prompt = random_ids(1, 3, 2, 3, seed=1), random_ids(1, 20, seed=2)

    def run(native):
        return native.imagine(native.prefill(prompt), actions, 12, draw(1, 3))[0]

    alone = [run(native) for native in engines]
    with ThreadPoolExecutor(4) as pool:  # two callers of each engine
        together = list(pool.map(run, engines * 4))
    for i, tokens in enumerate(together):
        assert torch.equal(tokens, alone[i % 2])


def test_progress_and_stopping():
    native = generator_of(llama(12))
    prompts = native.prefill(random_ids(1, 9, seed=1))
    actions = random_ids(1, 2, 3, 2, seed=2)
    seen = []
    expected, _ = native.imagine(prompts, actions, 5, draw(1, 2), seen.append)
    assert seen == [1, 2, 3]

    def stop(frames):
        raise KeyboardInterrupt(frames)

    with pytest.raises(KeyboardInterrupt):
        native.imagine(prompts, actions, 5, draw(1, 2), stop)
    assert torch.equal(native.imagine(prompts, actions, 5, draw(1, 2))[0], expected)


def test_broken_weights_mark_their_rows():
    model = llama(13)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    native = generator_of(model)
    tokens, _ = native.imagine(
        native.prefill(random_ids(1, 9, seed=1)), random_ids(1, 2, 1, 2, seed=2), 3, draw(1, 2)
    )
    assert (tokens == -1).all()


def test_prompts_are_selected_and_joined_without_copies():
    native = generator_of(llama(14))
    prompts = native.prefill(random_ids(3, 9, seed=1))
    joined = Prompts.concatenate([prompts.select(slice(1, 3)), prompts.select(torch.tensor([0]))])
    assert [prompts.scenes_kept.index(p) for p in joined.scenes_kept] == [1, 2, 0]
    assert joined.nbytes == prompts.nbytes


def test_the_plan_counts_what_is_taken():
    native = generator_of(llama(15))
    shape = Shape(1, 1, prompt=16, frames=2, action_dim=3, frame_tokens=5)
    one = native.plan(shape)
    four = native.plan(replace(shape, scenes=2, members=2))
    assert one["weights"] == four["weights"] == native.nbytes
    assert four["prompt keys and values"] == 2 * one["prompt keys and values"]
    assert four["suffix keys and values"] == 4 * one["suffix keys and values"]
    assert native.prefill(random_ids(1, 16, seed=1)).nbytes == one["prompt keys and values"]


@pytest.mark.parametrize("width", [1, 4])
def test_what_is_kept_is_what_was_planned(width):
    native = generator_of(llama(18))
    shape = Shape(2, 3, prompt=16, frames=2, action_dim=3, frame_tokens=5)
    prompts, actions = native.prefill(random_ids(2, 16, seed=1)), random_ids(2, 3, 2, 3, seed=2)
    for _ in range(2):
        native.imagine(prompts, actions, 5, draw(2, 3), width=width, guesses=["logits"])
        planned = native.plan(shape, width=width, guesses=["logits"])
        assert native.held_bytes == planned["suffix keys and values"] + planned["work"]
    native.release()
    assert native.held_bytes == 0


def test_a_repeated_request_takes_no_new_memory():
    """The second call of a shape touches no new pages; after release() it does."""
    native = generator_of(llama(19, hidden_size=96, head_dim=64))
    prompts, actions = native.prefill(random_ids(1, 9, seed=1)), random_ids(1, 40, 2, 3, seed=2)

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        native.imagine(prompts, actions, 50, draw(1, 40))
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    first, second = faults(), faults()
    native.release()
    assert second < faults() / 4
    assert second < first / 4


def test_rates_are_measured_once_for_each_number_of_threads():
    native = generator_of(llama(20))
    rates = native.rates()
    assert rates is native.rates()
    assert min(rates.seconds) > 0
    torch.set_num_threads(2)
    assert native.rates() is not rates


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("width", [1, 4])
def test_ctrl_c_within_a_frame(width):
    """A real signal during the first frame ends the call before that frame is done."""
    native = generator_of(llama(21))
    prompts = native.prefill(random_ids(1, 9, seed=1))
    actions = random_ids(1, 300, 1, 3, seed=2)  # this frame takes most of a second
    seen = []
    killer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        native.imagine(
            prompts, actions, 350, draw(1, 300), seen.append, width=width, guesses=["logits"]
        )
    killer.join()
    assert seen == []
    tokens, _ = native.imagine(prompts, actions, 5, draw(1, 300))
    assert (tokens >= 0).all()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("sliding_window", 16),
        ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}),
    ],
)
def test_unsupported_models_are_refused_by_name(option, value):
    model = llama(16, **{option: value})
    assert len(unsupported(model.config)) == 1
    named = "rope_type" if option == "rope_parameters" else option
    with pytest.raises(UnsupportedModelError, match=named):
        generator_of(model)


def test_odd_head_sizes_are_unsupported():
    config = LlamaConfig()
    vars(config)["head_dim"] = 7  # transformers' own check refuses it earlier
    assert unsupported(config) == ["head_dim = 7 (supported: even)"]


def test_wrong_arguments():
    native = generator_of(llama(17))
    with pytest.raises(DtypeError, match="cache_dtype 'float16'; allowed: float8_e4m3fn"):
        generator_of(llama(17), cache=torch.float16)
    with pytest.raises(ShapeError, match=r"must lie in \[0, 61\), got 61"):
        native.prefill(torch.full((1, 3), VOCABULARY))
    prompts = native.prefill(random_ids(1, 9, seed=1))
    with pytest.raises(ShapeError, match="actions must be int32"):
        native.imagine(prompts, random_ids(2, 1, 1, 3, seed=1), 3, draw(1, 1))
    with pytest.raises(ShapeError, match=f"exceeds the {POSITIONS} positions"):
        native.imagine(prompts, random_ids(1, 1, 9, 3, seed=1), 60, draw(1, 1))
    with pytest.raises(VlarftError, match="allowed: jacobi, logits"):
        native.imagine(prompts, random_ids(1, 1, 1, 3, seed=1), 3, draw(1, 1), guesses=["x"])
