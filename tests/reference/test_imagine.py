import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vlarft.errors import BackendError, UnsupportedModelError
from vlarft.reference.attention import causal_attention
from vlarft.reference.imagine import Draw, Suffix, extend, imagine, load_weights, prefill

CPU = torch.device("cpu")
SDPA = causal_attention("sdpa", CPU, torch.float32)
VOCABULARY, CODES = 60, 40

SHAPES = {
    "plain": {},
    "grouped queries": {"num_key_value_heads": 2},
    "wide heads": {"head_dim": 24},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "yarn rope": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}


def llama(**changes):
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(LlamaConfig(**(values | changes))).eval()
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.data.uniform_(0.5, 1.5)
            else:
                weight.data.normal_(0, 0.2)
    return model


def greedy(keys):
    return Draw(0, 0.0, None, 1.0, torch.arange(keys), torch.tensor([0]))


def random_ids(*shape, seed=0, low=0, high=VOCABULARY):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def run(model, prompts, actions, frame_tokens, draw, dtype=torch.float32):
    scenes, members, frames, width = actions.shape
    weights = load_weights(model, CODES, 128, CPU, dtype)
    prefix = prefill(weights, prompts, SDPA)
    suffix = Suffix(weights, scenes, members, frames * (width + frame_tokens) - 1)
    return imagine(weights, prefix, suffix, actions, frame_tokens, draw)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_every_pass_gives_the_logits_of_a_full_forward(shape):
    model = llama(**SHAPES[shape])
    scenes, members, prompt = 2, 3, 11
    prompts = random_ids(scenes, prompt)
    own = random_ids(scenes * members, 30, seed=1)
    sequences = torch.cat((prompts.repeat_interleave(members, 0), own), dim=1)
    truth = model(sequences).logits[..., :CODES]
    weights = load_weights(model, CODES, 128, CPU, torch.float32)
    prefix, suffix = prefill(weights, prompts, SDPA), Suffix(weights, scenes, members, 30)
    widths = [3, 1, 1, 1, 4, 1, 1, 8, 1, 1, 1, 7]  # borders and single tokens, as in a rollout
    for width in widths:
        ids = own[:, suffix.length : suffix.length + width]
        logits = torch.nn.functional.linear(extend(weights, prefix, suffix, ids), weights.head)
        assert torch.allclose(logits, truth[:, prompt + suffix.length - 1], rtol=1e-4, atol=1e-4)
    assert suffix.length == sum(widths)


@torch.inference_mode()
def test_greedy_tokens_equal_uncached_generation():
    model = llama(num_key_value_heads=2)
    prompts, actions = random_ids(2, 9), random_ids(2, 3, 3, 4, seed=2, low=CODES)
    tokens = run(model, prompts, actions, 5, greedy(2))
    for scene in range(2):
        for member in range(3):
            ids = prompts[scene].tolist()
            for frame in range(3):
                ids += actions[scene, member, frame].tolist()
                for position in range(5):
                    logits = model(torch.tensor([ids])).logits[0, -1, :CODES]
                    ids.append(int(logits.argmax()))
                    assert int(tokens[scene, member, frame, position]) == ids[-1]
    assert tokens.unique().numel() > 5  # the model does not just repeat itself


def test_one_scene_and_one_key_value_head():
    """Where a view of queries, keys and values in one tensor has no row stride of its own."""
    model = llama(num_key_value_heads=1)
    prompts, actions = random_ids(2, 9), random_ids(2, 3, 2, 4, seed=2, low=CODES)
    both = run(model, prompts, actions, 5, greedy(2))
    assert torch.equal(run(model, prompts[:1], actions[:1], 5, greedy(1)), both[:1])


def test_bfloat16_stays_as_near_as_transformers_does():
    model, prompts, own = llama(), random_ids(2, 11), random_ids(2, 12, seed=1)
    with torch.inference_mode():
        sequences = torch.cat((prompts, own), dim=1)
        truth = model(sequences).logits[:, -1, :CODES]
        weights = load_weights(model, CODES, 128, CPU, torch.bfloat16)
        suffix = Suffix(weights, 2, 1, 12)
        hidden = extend(weights, prefill(weights, prompts, SDPA), suffix, own)
        ours = torch.nn.functional.linear(hidden, weights.head).float()
        honest = model.bfloat16()(sequences).logits[:, -1, :CODES].float()
    assert (ours - truth).abs().max() <= 2 * (honest - truth).abs().max() + 1e-3


def test_only_frame_codes_are_sampled():
    model = llama()
    model.lm_head.weight.data[CODES:] *= 50  # other ids would win
    draw = Draw(0, 1.0, None, 1.0, torch.arange(2), torch.tensor([0, 1]))
    tokens = run(model, random_ids(2, 9), random_ids(2, 2, 2, 4, low=CODES), 6, draw)
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < CODES


def test_logits_that_are_not_finite_are_marked():
    model = llama()
    model.model.embed_tokens.weight.data[50] = float("nan")
    actions = random_ids(2, 2, 2, 4, low=CODES, high=50)
    actions[1, 0, 1, 2] = 50
    tokens = run(model, random_ids(2, 9, high=50), actions, 3, greedy(2))
    assert ((tokens < 0).all(-1).all(-1)).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"sliding_window": 16}, "sliding_window = 16"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type = 'dynamic'",
        ),
    ],
)
def test_unsupported_configurations_are_refused_by_name(change, word):
    with pytest.raises(UnsupportedModelError, match=word):
        load_weights(llama(**change), CODES, 128, CPU, torch.float32)


@pytest.mark.parametrize("name", ["flash-attn", "xformers"])
def test_attention_that_cannot_run_is_refused_with_its_reason(name):
    with pytest.raises(BackendError, match=f"'{name}' is not available: .*cpu.*use 'sdpa'"):
        causal_attention(name, CPU, torch.float32)


def test_equal_actions_stay_equal_when_rows_round_differently(monkeypatch):
    from vlarft.reference import imagine as module

    def uneven(*arguments):
        hidden = extend(*arguments)
        return hidden + torch.linspace(0, 2, len(hidden))[:, None] * torch.randn(hidden.shape[1])

    monkeypatch.setattr(module, "extend", uneven)
    actions = random_ids(2, 4, 3, 4, low=CODES)
    actions[:, 2] = actions[:, 1]
    actions[:, 3, :2] = actions[:, 1, :2]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = run(llama(), random_ids(2, 9), actions, 5, greedy(2))
    assert torch.equal(tokens[:, 2], tokens[:, 1])
    assert torch.equal(tokens[:, 3, :2], tokens[:, 1, :2])
    assert not torch.equal(tokens[:, 3, 2], tokens[:, 1, 2])
    assert not torch.equal(tokens[:, 0], tokens[:, 1])
