"""World-model pre-training: next-token cross-entropy on the codes of imagined frames.

The softmax runs over frame codes only, which is the distribution that imagination samples from.
Windows are tokenised once, with the frozen tokenizer, and kept as small integers.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlarft.data.windows import Windows
from vlarft.engine.native_encoder import NativeEncoder
from vlarft.engine.team import Team
from vlarft.models.tokenizer import Tokenizer
from vlarft.models.world_model import WorldModel
from vlarft.train.loop import LoopConfig, autocast


class WorldModelTraining(LoopConfig):
    """Data and regularisation of the transformer."""

    window_stride: int = 1  # use every n-th window start of each episode
    token_noise: float = 0.0  # share of input frame codes replaced at random, against drift
    dropout: float = 0.0  # of attention weights


@dataclass(frozen=True)
class TokenizedWindows:
    """Windows as tokens: context int16 [W,K0], frames int16 [W,1+T,K], raw actions [W,T,A]."""

    context: Tensor
    frames: Tensor
    actions: Tensor

    def __len__(self) -> int:
        """W."""
        return len(self.context)

    def select(self, windows: Sequence[int]) -> "TokenizedWindows":
        """Some of them, in any order, repeats allowed."""
        chosen = torch.tensor(windows, dtype=torch.int64)
        return TokenizedWindows(self.context[chosen], self.frames[chosen], self.actions[chosen])


def kept_tokens(
    path: Path, origin: dict[str, Any], make: Callable[[], TokenizedWindows]
) -> TokenizedWindows:
    """Tokens of an earlier session, so that going on need not tokenise again; else new ones.

    Args:
        path: safetensors file; it appears only when it is complete.
        origin: what tokens are made from, plain values; a file of another origin is replaced.
        make: makes them.
    """
    written = json.dumps(origin, sort_keys=True)
    if path.is_file():
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("origin")
        if found == written:
            return TokenizedWindows(**load_file(path))
    tokens = make()
    partial = path.with_suffix(".partial")
    save_file(vars(tokens), partial, {"origin": written})
    partial.replace(path)
    return tokens


@torch.inference_mode()
def tokenize_windows(
    tokenizer: Tokenizer,
    windows: Windows,
    indices: Sequence[int] | Tensor,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> TokenizedWindows:
    """Tokenise windows with a frozen tokenizer, each frame conditioned on its window's first.

    On a CPU by the engine's own encoder, so that training sees the tokens that imagination begins
    with; on a GPU in bfloat16 where it has that.
    """
    device = next(tokenizer.parameters()).device
    encoder = NativeEncoder(tokenizer, Team()) if device.type == "cpu" else tokenizer
    precision = "float32" if device.type == "cpu" else "auto"
    contexts, frames, actions = [], [], []
    chunks = torch.as_tensor(np.asarray(indices)).split(batch_size)
    for done, chunk in enumerate(chunks, start=1):
        batch = windows.batch(chunk)
        pixels = batch.frames.to(device).permute(0, 1, 4, 2, 3).float() / 255
        with autocast(precision, device):
            context, features = encoder.encode_context(pixels[:, 0])
            tokens = encoder.encode_frames(features, pixels)  # the first frame too
        contexts.append(context.short().cpu())
        frames.append(tokens.short().cpu())
        actions.append(batch.actions)
        if progress:
            progress(done, len(chunks))
    return TokenizedWindows(torch.cat(contexts), torch.cat(frames), torch.cat(actions))


class WorldModelTask:
    """Next-token prediction on tokenised windows."""

    def __init__(
        self,
        world: WorldModel,
        config: WorldModelTraining,
        train: TokenizedWindows,
        validation: TokenizedWindows,
        imagine: Callable[[WorldModel], dict[str, float]] | None = None,
    ) -> None:
        self.world, self.config = world, config
        self.model: nn.Module = world.transformer
        world.tokenizer.requires_grad_(False)
        for layer in world.transformer.model.layers:
            layer.self_attn.attention_dropout = config.dropout
        self.train, self.validation, self.imagine = train, validation, imagine
        frames = train.frames.shape[1] - 1
        mask = world.target_mask(frames)
        self.targets = mask[1:]  # position i predicts id i + 1
        self.imagined = mask[:-1]  # inputs that are imagined codes

    def parameters(self) -> Iterator[nn.Parameter]:
        """The transformer; the tokenizer is frozen."""
        return self.model.parameters()

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """Cross-entropy (nats a token) of one random batch."""
        indices = torch.randint(len(self.train), (self.config.batch_size,), generator=generator)
        ids, labels = self._ids(self.train, indices)
        if self.config.token_noise:
            noisy = torch.rand(ids.shape, generator=generator) < self.config.token_noise
            noisy &= self.imagined  # context and actions stay as they are
            random = torch.randint(self.world.frame_codes, ids.shape, generator=generator)
            ids = torch.where(noisy.to(ids.device), random.to(ids.device), ids)
        loss = self._cross_entropy(ids, labels)
        return loss, {}

    def validate(self, model: nn.Module) -> dict[str, float]:  # noqa: ARG002
        """Cross-entropy with the right and with another window's actions, and imagination."""
        count = min(128, len(self.validation))
        indices = torch.linspace(0, len(self.validation) - 1, count).long()
        loss = swapped = 0.0
        for chunk in indices.split(16):
            ids, labels = self._ids(self.validation, chunk)
            loss += self._cross_entropy(ids, labels).item() * len(chunk)
            ids, labels = self._ids(self.validation, chunk, self.validation.actions[chunk.flip(0)])
            swapped += self._cross_entropy(ids, labels).item() * len(chunk)
        figures = {"loss": loss / count, "loss_swapped_actions": swapped / count}
        return figures | (self.imagine(self.world) if self.imagine else {})

    def after_step(self, step: int) -> None:
        """Nothing to do."""

    def extra_state(self) -> dict[str, Any]:
        """No further state."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `extra_state`."""

    def _ids(
        self, data: TokenizedWindows, indices: Tensor, actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        device = next(self.model.parameters()).device
        actions = data.actions[indices] if actions is None else actions
        ids = self.world.sequence_ids(
            data.context[indices].long(), data.frames[indices].long(), actions
        )
        return ids[:, :-1].to(device), ids[:, 1:][:, self.targets].to(device)

    def _cross_entropy(self, ids: Tensor, labels: Tensor) -> Tensor:
        hidden = self.world.transformer.model(input_ids=ids, use_cache=False).last_hidden_state
        head = self.world.transformer.lm_head.weight[: self.world.frame_codes]
        logits = F.linear(hidden[:, self.targets], head)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
