"""Named model sizes with random weights: tiny (tests), small (64 px, demo), paper (256 px)."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vlarft.config import Config, load_config
from vlarft.models.layout import Layout
from vlarft.models.tokenizer import Tokenizer, TokenizerConfig
from vlarft.models.world_model import WorldModel

# Ranges of the official file `libero_action_ranges.pth` (raw LIBERO controller units).
LIBERO_ACTION_LOW = (-0.9375, -0.9375, -0.9375, -0.2582, -0.375, -0.3675, -1.0)
LIBERO_ACTION_HIGH = (0.9375, 0.9375, 0.9375, 0.3557, 0.375, 0.375, 1.0)


class TransformerConfig(Config):
    """Shape of the Llama transformer; the vocabulary follows from the tokenizer."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    intermediate_size: int = 3072
    max_position_embeddings: int = 8192
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False


class WorldConfig(Config):
    """A whole world model: the `model` section of a preset file."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    transformer: TransformerConfig = TransformerConfig()
    frames: int = 8
    bins: int = 256


def world_config(preset: str) -> WorldConfig:
    """The `model` section of a preset file."""
    from vlarft.config import read_yaml

    return load_config(WorldConfig, read_yaml(preset).get("model", {}))


def build_tokenizer(preset: str | TokenizerConfig, seed: int = 0) -> Tokenizer:
    """Tokenizer with random weights drawn from `seed`."""
    config = world_config(preset).tokenizer if isinstance(preset, str) else preset
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tokenizer(config).eval()


def llama_config(config: TransformerConfig, vocabulary: int) -> LlamaConfig:
    """Configuration of the transformer for a vocabulary, whose last ids begin and end a text."""
    values: dict[str, Any] = config.model_dump(exclude={"rope_theta"})
    values["num_key_value_heads"] = config.num_key_value_heads or config.num_attention_heads
    return LlamaConfig(
        **values,
        vocab_size=vocabulary,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def build_transformer(
    config: TransformerConfig, vocabulary: int, seed: int = 0
) -> LlamaForCausalLM:
    """Llama with random weights drawn from `seed` (normal, std 0.02)."""
    llama = llama_config(config, vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer: LlamaForCausalLM = LlamaForCausalLM(llama).float().eval()
        return transformer


def build_world(preset: str | WorldConfig, seed: int = 0) -> WorldModel:
    """World model with random weights drawn from `seed` and LIBERO's official action ranges."""
    config = world_config(preset) if isinstance(preset, str) else preset
    tokenizer = build_tokenizer(config.tokenizer, seed)
    layout = Layout(
        frames=config.frames,
        bins=config.bins,
        action_low=LIBERO_ACTION_LOW,
        action_high=LIBERO_ACTION_HIGH,
    )
    vocabulary = tokenizer.frame_codes + tokenizer.context_codes + config.bins + 2
    return WorldModel(
        tokenizer, build_transformer(config.transformer, vocabulary, seed), layout
    ).eval()
