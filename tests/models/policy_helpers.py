"""Observations and statistics that the policy tests share."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlarft.data.statistics import Statistics
from vlarft.models.flow_policy import FlowPolicy, build_policy
from vlarft.models.policy import Observation
from vlarft.models.vlm import PROMPT, VLMConfig, VLMEncoder

MILK = "pick up the milk and place it in the basket"
SOUP = "pick up the alphabet soup and place it in the basket"

STATISTICS = Statistics(
    action_q01=(-0.8, -0.7, -0.9, -0.1, -0.2, -0.3, -1.0),
    action_q99=(0.8, 0.9, 0.9, 0.1, 0.2, 0.3, 1.0),
    action_min=(-0.9375,) * 6 + (-1.0,),
    action_max=(0.9375,) * 6 + (1.0,),
    proprioception_q01=(-1.0,) * 8,
    proprioception_q99=(1.0,) * 8,
    episodes=3,
    steps=300,
)

PATCHES, QUERIES, WIDTH = 16, 5, 16


def tiny_config(**changes: object) -> VLMConfig:
    """A VLM of a few thousand parameters on 32 px."""
    tower = {"num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    return VLMConfig(
        dino={"hidden_size": 8, "num_register_tokens": 2, **tower},
        siglip={"hidden_size": 12, "intermediate_size": 16, **tower},
        language={
            "vocab_size": 64,
            "hidden_size": WIDTH,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        image_size=32,
        queries=QUERIES,
    ).model_copy(update=changes)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the prompt with MILK and SOUP."""
    split = pre_tokenizers.Whitespace()
    pieces = {"[UNK]"}
    for text in (MILK, SOUP):
        pieces |= {piece for piece, _ in split.pre_tokenize_str(PROMPT.format(instruction=text))}
    model = models.WordLevel({p: i for i, p in enumerate(sorted(pieces))}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def vlm_encoder(**changes: object) -> VLMEncoder:
    """A tiny VLM with random weights."""
    torch.manual_seed(0)
    return VLMEncoder(tiny_config(**changes), word_tokenizer()).eval()


def observe(scenes: int = 3, size: int = 32, seed: int = 0) -> Observation:
    """Random pictures with alternating instructions."""
    generator = torch.Generator().manual_seed(seed)
    return Observation(
        torch.randint(0, 256, (scenes, size, size, 3), dtype=torch.uint8, generator=generator),
        torch.randn((scenes, 8), generator=generator) * 0.5,
        [(MILK, SOUP)[i % 2] for i in range(scenes)],
    )


def shaken(policy: FlowPolicy, seed: int = 1) -> FlowPolicy:
    """The policy with its zero-initialised layers moved, so that every path carries signal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def tiny(seed: int = 0) -> FlowPolicy:
    """A shaken tiny policy."""
    return shaken(build_policy("tiny", STATISTICS, seed))


def generator(seed: int = 0) -> torch.Generator:
    """A seeded CPU generator."""
    return torch.Generator().manual_seed(seed)
