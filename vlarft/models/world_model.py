"""World model: tokenizer, Llama transformer and the vocabulary that joins them.

Ids: frame codes first, then context codes, action bins, BOS, EOS (spec of the official processor
`ctx_msp`). A scene's prompt is its context tokens and the tokens of its first frame; each rollout
then alternates 7 action ids and K frame ids.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlarft.errors import CheckpointError, ShapeError, UnsupportedModelError
from vlarft.models.folder import load_strict, read_json, read_tensors, write_tensors
from vlarft.models.layout import Layout
from vlarft.models.tokenizer import Tokenizer

TRANSFORMER_WEIGHTS = "model.safetensors"


class WorldModel(nn.Module):
    """Frozen simulator of frames: `tokenizer`, `transformer` and `layout`."""

    def __init__(self, tokenizer: Tokenizer, transformer: LlamaForCausalLM, layout: Layout) -> None:
        super().__init__()
        self.tokenizer, self.transformer, self.layout = tokenizer, transformer, layout
        size = int(transformer.config.vocab_size)
        if size != self.vocabulary:
            raise UnsupportedModelError(
                f"transformer has {size} ids; {tokenizer.frame_codes} frame codes + "
                f"{tokenizer.context_codes} context codes + {layout.bins} action bins + 2 need "
                f"{self.vocabulary}"
            )
        need, limit = (
            self.sequence_length(layout.frames),
            int(transformer.config.max_position_embeddings),
        )
        if need > limit:
            raise UnsupportedModelError(
                f"a window needs {need} positions, the transformer has {limit}"
            )

    # --- vocabulary and lengths -------------------------------------------------------------

    @property
    def frame_codes(self) -> int:
        """Ids 0 .. frame_codes-1 are frame codes: the only ids that may be sampled."""
        return self.tokenizer.frame_codes

    @property
    def context_offset(self) -> int:
        """First id of the context codes."""
        return self.tokenizer.frame_codes

    @property
    def action_offset(self) -> int:
        """First id of the action bins."""
        return self.context_offset + self.tokenizer.context_codes

    @property
    def vocabulary(self) -> int:
        """Number of ids: codes, bins, BOS and EOS."""
        return self.action_offset + self.layout.bins + 2

    @property
    def context_tokens(self) -> int:
        """K0."""
        return self.tokenizer.context_tokens

    @property
    def frame_tokens(self) -> int:
        """K."""
        return self.tokenizer.frame_tokens

    @property
    def prompt_length(self) -> int:
        """K0 + K, ids shared by a scene's group."""
        return self.context_tokens + self.frame_tokens

    def sequence_length(self, frames: int) -> int:
        """Ids of a prompt and `frames` imagined frames."""
        return self.prompt_length + frames * (self.layout.action_dim + self.frame_tokens)

    def prompt_ids(self, context: Tensor, first: Tensor) -> Tensor:
        """Context tokens [P,K0] and first-frame tokens [P,K] -> ids int64 [P,K0+K]."""
        return torch.cat([context + self.context_offset, first], dim=-1)

    def action_ids(self, actions: Tensor) -> Tensor:
        """Raw actions [...,A] -> ids int64 [...,A]."""
        if actions.shape[-1] != self.layout.action_dim:
            raise ShapeError(
                f"actions must be [...,{self.layout.action_dim}], got {list(actions.shape)}"
            )
        return self.layout.action_bins(actions) + self.action_offset

    def sequence_ids(self, context: Tensor, frames: Tensor, actions: Tensor) -> Tensor:
        """Tokens [B,K0], [B,1+T,K] and raw actions [B,T,A] -> ids int64 [B, sequence_length(T)].

        [context][f_0] then, for t = 0..T-1, [a_t][f_t+1].
        """
        steps = torch.cat([self.action_ids(actions), frames[:, 1:]], dim=-1)
        return torch.cat([self.prompt_ids(context, frames[:, 0]), steps.flatten(1)], dim=-1)

    def target_mask(self, frames: int) -> Tensor:
        """Bool [sequence_length]: True at ids of imagined frames, the only ones trained on."""
        step = torch.zeros(self.layout.action_dim + self.frame_tokens, dtype=torch.bool)
        step[self.layout.action_dim :] = True
        return torch.cat([torch.zeros(self.prompt_length, dtype=torch.bool), step.repeat(frames)])

    def window_tokens(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Recorded frames uint8 [B,T+1,H,W,3] -> tokens: context [B,K0] and frames [B,T+1,K]."""
        device = next(self.tokenizer.parameters()).device
        pixels = frames.to(device).permute(0, 1, 4, 2, 3).float() / 255
        context, features = self.tokenizer.encode_context(pixels[:, 0])
        return context, self.tokenizer.encode_frames(features, pixels)

    def frame_logits(self, context: Tensor, frames: Tensor, actions: Tensor) -> Tensor:
        """Logits of imagined frames' tokens, each given the tokens before it (teacher forcing).

        Args:
            context: tokens [B,K0].
            frames: tokens [B,1+T,K].
            actions: raw [B,T,A].

        Returns:
            float [B,T,K,frame codes], on the transformer's device.
        """
        device = self.transformer.model.embed_tokens.weight.device
        ids = self.sequence_ids(context.to(device), frames.to(device), actions.to(device))
        targets = self.target_mask(actions.shape[1])[1:].to(device)
        hidden = self.transformer.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        head = self.transformer.lm_head.weight[: self.frame_codes]
        logits = F.linear(hidden[:, targets], head)
        return logits.view(len(ids), actions.shape[1], self.frame_tokens, -1)

    @torch.no_grad()
    def structure_embeddings(self, seed: int) -> None:
        """Start neighbouring codes and neighbouring action bins from similar embeddings.

        A code is a vector of FSQ digits and a bin is a number; rows drawn independently would have
        to be learned one by one. Random projections of smooth features, of the same size as before.
        """
        table = self.transformer.model.embed_tokens.weight
        generator = torch.Generator().manual_seed(seed)

        def fill(first: int, features: Tensor) -> None:
            projection = torch.randn(features.shape[1], table.shape[1], generator=generator)
            smooth = features @ projection
            rows = table[first : first + len(features)]
            size = rows.std()
            own = rows * 0.25  # what tells a row from its neighbours
            rows.copy_(own + smooth * (size * 0.97 / smooth.std()).to(smooth.device))

        for first, fsq in (
            (0, self.tokenizer.frame_fsq),
            (self.context_offset, self.tokenizer.context_fsq),
        ):
            digits = fsq.codes(torch.arange(fsq.size))
            fill(first, torch.cat([digits, (math.pi * digits).cos(), (math.pi * digits).sin()], 1))
        position = torch.arange(self.layout.bins)[:, None] / self.layout.bins
        finest = max(1, int(math.log2(self.layout.bins)) - 3)  # a period of 16 bins
        waves = math.pi * position * 2.0 ** torch.arange(finest)
        fill(self.action_offset, torch.cat([waves.cos(), waves.sin()], dim=1))

    # --- folders ----------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "WorldModel":
        """Load `tokenizer/`, `transformer/` and `layout.json`; weights in float32.

        Raises:
            CheckpointError: a part is missing or differs from its configuration.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder}: no such folder; expected tokenizer/, transformer/ and layout.json"
            )
        layout = Layout.read(folder / "layout.json")
        tokenizer = Tokenizer.from_pretrained(folder / "tokenizer")
        config = LlamaConfig(**read_json(folder / "transformer" / "config.json"))
        transformer: LlamaForCausalLM = LlamaForCausalLM(config).float()
        tensors = {k: v.float() for k, v in read_tensors(folder / "transformer").items()}
        if config.tie_word_embeddings:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        load_strict(transformer, tensors, str(folder / "transformer"))
        return cls(tokenizer, transformer, layout).eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the world folder, weights in `dtype` when given."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder / "tokenizer", dtype)
        tensors = dict(self.transformer.state_dict())
        if self.transformer.config.tie_word_embeddings:
            tensors.pop("lm_head.weight")
        write_tensors(folder / "transformer" / TRANSFORMER_WEIGHTS, tensors, dtype)
        self.transformer.config.save_pretrained(folder / "transformer")
        self.layout.write(folder / "layout.json")
