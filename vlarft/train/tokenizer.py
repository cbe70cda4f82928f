"""Tokenizer pre-training: L1 + LPIPS (+ late adversarial) on the context and on later frames."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlarft.data.windows import MOVING_THRESHOLD, Windows
from vlarft.models.lpips import LPIPS, Net
from vlarft.models.tokenizer import Tokenizer
from vlarft.train.adversary import Adversary
from vlarft.train.loop import LoopConfig


class TokenizerTraining(LoopConfig):
    """Losses of the tokenizer; 1 / 1 / 0.1 from step 10,000 are the official weights."""

    part: Literal["all", "decoder"] = "all"  # decoder: tokens stay, and world models fit on
    frames_per_window: int = 2  # later frames drawn from each window
    lpips_net: Net = "alex"
    lpips_weight: float = 1.0
    moving_weight: float = 0.0  # extra L1 weight where a frame differs from its context frame
    adversarial_weight: float = 0.1
    adversarial_start: int = 10_000  # step
    discriminator_depth: int = 6
    discriminator_width: int = 64
    discriminator_learning_rate: float = 5e-4


class TokenizerTask:
    """Reconstruction of windows of recorded frames."""

    def __init__(
        self, tokenizer: Tokenizer, config: TokenizerTraining, train: Windows, validation: Windows
    ) -> None:
        # Contiguous, not channels-last: torch's bf16 GroupNorm backward is 6 times slower there.
        self.model: nn.Module = tokenizer
        if config.part == "decoder":
            for module in tokenizer.token_makers():
                module.requires_grad_(False)
        self.tokenizer, self.config = tokenizer, config
        self.train, self.validation = train, validation
        self.lpips = LPIPS.load(config.lpips_net).to(next(tokenizer.parameters()).device)
        self.adversary = Adversary(
            tokenizer.config.resolution,
            config.discriminator_depth,
            config.discriminator_width,
            config.discriminator_learning_rate,
            config.seed,
        )
        self.adversary.discriminator.to(next(tokenizer.parameters()).device)
        self._last: tuple[Tensor, Tensor] | None = None

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights of the tokenizer."""
        return self.tokenizer.parameters()

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one random batch."""
        c = self.config
        indices = torch.randint(len(self.train), (c.batch_size,), generator=generator)
        pixels = self._pixels(self.train, indices)
        # Offsets include 0: the first frame is coded as a later frame too.
        later = torch.rand(c.batch_size, pixels.shape[1], generator=generator).argsort(1)
        later = later[:, : c.frames_per_window].to(pixels.device)
        rows = torch.arange(c.batch_size, device=pixels.device)[:, None]
        pixels = torch.cat([pixels[:, :1], pixels[rows, later]], dim=1)
        context, frames = self.model(pixels)
        context, frames = context.float(), frames.float()
        moving = (pixels[:, 1:] - pixels[:, :1]).abs().amax(2, keepdim=True) > MOVING_THRESHOLD
        weight = 1 + c.moving_weight * moving
        l1_context = F.l1_loss(context, pixels[:, 0])
        l1_frames = ((frames - pixels[:, 1:]).abs() * weight).mean()
        both = torch.cat([context, frames.flatten(0, 1)])
        target = torch.cat([pixels[:, 0], pixels[:, 1:].flatten(0, 1)])
        distances = self.lpips(both, target)
        lpips = distances[: len(context)].mean() + distances[len(context) :].mean()
        loss = l1_context + l1_frames + c.lpips_weight * lpips
        figures = {
            "l1_context": l1_context.item(),
            "l1_frames": l1_frames.item(),
            "lpips": lpips.item() / 2,
        }
        self._last = None
        if c.adversarial_weight and step >= c.adversarial_start:
            adversarial = self.adversary.generator_loss(both)
            loss = loss + c.adversarial_weight * adversarial
            figures["adversarial"] = adversarial.item()
            self._last = (target, both)
        return loss, figures

    def after_step(self, step: int) -> None:  # noqa: ARG002 - part of the loop's protocol
        """The discriminator's turn, once the adversarial term has started."""
        if self._last is not None:
            self.adversary.update(*self._last)
            self._last = None

    def validate(self, model: nn.Module) -> dict[str, float]:
        """PSNR of reconstructions over all and over moving pixels, and LPIPS, on fixed windows."""
        count = min(64, len(self.validation))
        indices = torch.linspace(0, len(self.validation) - 1, count).long()
        total, moving_total, moving_count, lpips, context_total = 0.0, 0.0, 0.0, 0.0, 0.0
        used: set[int] = set()
        for chunk in indices.split(16):
            pixels = self._pixels(self.validation, chunk)
            assert isinstance(model, Tokenizer)
            tokens, frames = model.tokenize(pixels[:, [0, 4, 8]] if pixels.shape[1] > 8 else pixels)
            pixels = pixels[:, [0, 4, 8]] if pixels.shape[1] > 8 else pixels
            used |= set(frames.flatten().tolist())
            out = model.detokenize(tokens, frames).clamp(0, 1)
            error = (out - pixels[:, 1:]).square().mean(2)
            moving = (pixels[:, 1:] - pixels[:, :1]).abs().amax(2) > MOVING_THRESHOLD
            total += error.mean().item() * len(chunk)
            moving_total += (error * moving).sum().item()
            moving_count += moving.sum().item()
            context = model.decode_context(tokens).clamp(0, 1)
            context_total += (context - pixels[:, 0]).square().mean().item() * len(chunk)
            lpips += self.lpips(out.flatten(0, 1), pixels[:, 1:].flatten(0, 1)).mean().item() * len(
                chunk
            )
        return {
            "psnr": _psnr(total / count),
            "psnr_context": _psnr(context_total / count),
            "psnr_moving": _psnr(moving_total / max(moving_count, 1)),
            "lpips": lpips / count,
            "codes_used": len(used) / self.tokenizer.frame_codes,
        }

    def extra_state(self) -> dict[str, Any]:
        """State of the discriminator."""
        return self.adversary.state()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `extra_state`."""
        self.adversary.load(state)

    def _pixels(self, windows: Windows, indices: Tensor) -> Tensor:
        """Windows' frames [B,1+T,3,H,W] in [0,1]."""
        frames = windows.batch(indices).frames.to(next(self.model.parameters()).device)
        return frames.permute(0, 1, 4, 2, 3).float() / 255


def _psnr(mean_squared_error: float) -> float:
    return float(-10 * torch.log10(torch.tensor(max(mean_squared_error, 1e-10))))
