"""Token generation in C++ on the CPU and in CUDA on a GPU: `backend="native"`.

`Generator` packs a transformer's weights once, `prefill` keeps a scene's prompt, and `imagine` runs
a whole rollout (all frames, actions and members) in one call. Tokens are those of
`vlarft.reference.imagine` up to float rounding, and do not depend on batch mates, batch split,
number of threads or speculation, bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlarft import _native
from vlarft.engine.speculate import MEASURED_TOKENS, Rates, Shape
from vlarft.errors import BackendError, UnsupportedModelError
from vlarft.reference.imagine import Draw
from vlarft.reference.imagine import unsupported as reference_unsupported

GUESS_SOURCES = ("jacobi", "logits")


_CPU = torch.device("cpu")
_WIDEST_GPU_HEAD = 128


def unsupported(config: LlamaConfig, device: torch.device = _CPU) -> list[str]:
    """Reasons why the native kernels cannot run a transformer on a device; empty when they can."""
    reasons = reference_unsupported(config)
    if config.attention_bias:
        reasons.append("attention_bias = True (supported: False)")
    if config.mlp_bias:
        reasons.append("mlp_bias = True (supported: False)")
    if _head_dim(config) % 2 != 0:
        reasons.append(f"head_dim = {_head_dim(config)} (supported: even)")
    if device.type == "cuda" and _head_dim(config) > _WIDEST_GPU_HEAD:
        reasons.append(
            f"head_dim = {_head_dim(config)} (supported on a GPU: at most {_WIDEST_GPU_HEAD})"
        )
    return reasons


@dataclass(frozen=True)
class Prompts:
    """Keys and values of the scenes' prompts, one object a scene."""

    scenes_kept: tuple[Any, ...]  # _native.Prompt or _native.CudaPrompt

    @property
    def scenes(self) -> int:
        """P."""
        return len(self.scenes_kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(prompt.bytes for prompt in self.scenes_kept)

    def select(self, scenes: Tensor | slice) -> "Prompts":
        """Some of the scenes; nothing is copied."""
        rows = np.arange(self.scenes)[scenes if isinstance(scenes, slice) else scenes.cpu().numpy()]
        return Prompts(tuple(self.scenes_kept[int(row)] for row in rows))

    @staticmethod
    def concatenate(parts: "Sequence[Prompts]") -> "Prompts":
        """Join scenes in order; nothing is copied."""
        return Prompts(tuple(prompt for part in parts for prompt in part.scenes_kept))


class Generator:
    """A transformer packed for a device.

    Args:
        model: transformers' Llama; its weights are copied.
        frame_codes: ids 0 .. frame_codes-1 may be sampled.
        positions: longest sequence, prompt included.
        dtype: float32, or bfloat16 storage of weights and cache with float32 sums.
        device: a CPU, or a GPU; there everything is queued on torch's current stream.
        cache_dtype: float8_e4m3fn for keys and values: of one byte an entry on a GPU; on a CPU they
            are rounded likewise and stored in `dtype`. None: `dtype`.

    Raises:
        UnsupportedModelError: the configuration has something that the kernels do not compute.
        BackendError: the environment variable VLARFT_CPU names kernels that are unknown or cannot
            run here.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        frame_codes: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device = _CPU,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        config: LlamaConfig = model.config
        reasons = unsupported(config, device)
        if reasons:
            raise UnsupportedModelError(f"transformer cannot be run natively: {'; '.join(reasons)}")
        head_dim = _head_dim(config)
        self.layers = int(config.num_hidden_layers)
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads or self.heads)
        self.head_dim = head_dim
        self._embedding_numbers = int(config.vocab_size) * int(config.hidden_size)
        self._element = dtype.itemsize
        self._positions = positions
        self._device = device
        self._rates: dict[int, Rates] = {}  # by number of threads
        tensors = {
            name: tensor.detach().to("cpu", torch.float32).contiguous()
            for name, tensor in model.state_dict().items()
        }
        tensors["lm_head.weight"] = model.lm_head.weight.detach().to("cpu", torch.float32)
        rotary = model.model.rotary_emb
        index = torch.arange(positions, device=rotary.inv_freq.device)[None]
        cos, sin = rotary(torch.zeros(1, device=index.device), index)
        half = head_dim // 2
        if cos.shape[-1] != head_dim:
            raise UnsupportedModelError(
                f"transformer cannot be run natively: rotary embedding of {cos.shape[-1]} of "
                f"{head_dim} head entries (supported: all)"
            )
        tensors["rotary.cos"] = cos[0, :, :half].float().cpu().contiguous()
        tensors["rotary.sin"] = sin[0, :, :half].float().cpu().contiguous()
        make: Any = _native.Imaginer
        where: dict[str, Any] = {}
        if self._on_gpu:
            make, where = _native.CudaImaginer, {"device": device.index, **self._where()}
        self._imaginer = make(
            {
                "layers": self.layers,
                "hidden": int(config.hidden_size),
                "heads": self.heads,
                "kv_heads": self.kv_heads,
                "head_dim": head_dim,
                "ffn": int(config.intermediate_size),
                "vocabulary": int(config.vocab_size),
                "frame_codes": frame_codes,
                "positions": positions,
                "eps": float(config.rms_norm_eps),
            },
            tensors,
            dtype=str(dtype).removeprefix("torch."),
            cache_dtype="" if cache_dtype is None else str(cache_dtype).removeprefix("torch."),
            **where,
        )

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def _where(self) -> dict[str, Any]:
        """Where the next call runs: torch's threads, or its current stream."""
        if self._on_gpu:
            return {"stream": torch.cuda.current_stream(self._device).cuda_stream}
        return {"threads": torch.get_num_threads()}

    @property
    def kernels(self) -> str:
        """Kernels that run: cuda, amx, avx512_bf16, avx512, avx2 or portable."""
        kernels: str = self._imaginer.kernels
        return kernels

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        weights: int = self._imaginer.weight_bytes
        return weights

    def prefill(self, ids: Tensor) -> Prompts:
        """Keys and values of prompts, int64 [P,S]."""
        prompts = self._imaginer.prefill(_ids(ids), **self._where())
        return Prompts(tuple(prompts))

    def imagine(
        self,
        prompts: Prompts,
        actions: Tensor,
        frame_tokens: int,
        draw: Draw,
        progress: Callable[[int], None] | None = None,
        *,
        width: int = 1,
        guesses: Sequence[str] = (),
    ) -> tuple[Tensor, dict[str, Any]]:
        """Imagine all frames of all members.

        Args:
            prompts: the scenes' prompts.
            actions: action ids, int64 [P,M,T,A].
            frame_tokens: K.
            draw: sampling settings.
            progress: called with the number of frames that every row has finished, 1 .. T.
            width: W >= 1, positions of a row that one pass may settle.
            guesses: sources of the W - 1 guesses, of GUESS_SOURCES; the first that knows a place
                guesses it. Neither `width` nor `guesses` changes the tokens.

        Returns:
            Frame tokens int64 [P,M,T,K] (-1 everywhere in a row whose logits were not finite), and
            what happened: kernels, width, passes, accepted_per_pass (tokens settled a row and
            pass), computed_tokens, wasted_tokens (computed and thrown away), guesses by source as
            (right, tried behind a right past).
        """
        scenes, rows, frames, _ = actions.shape
        members = draw.members.expand(rows).cpu().numpy().astype(np.uint32)
        out: dict[str, Any] = {}
        if self._on_gpu:
            shape = (scenes, rows, frames, frame_tokens)
            out["tokens"] = torch.empty(shape, dtype=torch.int32, device=self._device)
        done = self._imaginer.imagine(
            list(prompts.scenes_kept),
            _ids(actions),
            draw.keys.cpu().numpy().astype(np.uint32),
            members,
            **out,
            frame_tokens=frame_tokens,
            seed=draw.seed,
            temperature=draw.temperature,
            top_k=draw.top_k or 0,
            top_p=draw.top_p,
            width=width,
            guesses=list(guesses),
            progress=progress,
            **self._where(),
        )
        tokens, stats = (
            (out["tokens"], done) if self._on_gpu else (torch.from_numpy(done[0]), done[1])
        )
        stats["accepted_per_pass"] = stats.pop("tokens") / max(1, stats.pop("row_passes"))
        return tokens.long(), stats

    def score(self, prompts: Prompts, ids: Tensor, *, chunk: int) -> Tensor:
        """Logits [P,M,L,frame_codes] after each of ids [P,M,L], `chunk` ids a pass.

        Raises:
            BackendError: this generator is on a GPU.
        """
        if self._on_gpu:
            raise BackendError("score: runs on a CPU only; make a generator there for it")
        logits = self._imaginer.score(
            list(prompts.scenes_kept), _ids(ids), chunk=chunk, **self._where()
        )
        return torch.from_numpy(logits)

    def plan(self, shape: Shape, *, width: int = 1, guesses: Sequence[str] = ()) -> dict[str, int]:
        """Bytes by purpose that prefill and imagine take and keep, weights included."""
        more: dict[str, Any] = {}
        if not self._on_gpu:
            more = {"keeps_logits": width > 1 and "logits" in guesses, **self._where()}
        plan: dict[str, int] = self._imaginer.plan(
            scenes=shape.scenes,
            rows=shape.members,
            prompt=shape.prompt,
            frames=shape.frames,
            action_dim=shape.action_dim,
            frame_tokens=shape.frame_tokens,
            width=width,
            **more,
        )
        return plan

    def scenes_at_once(self, shape: Shape) -> int:
        """Scenes imagined together: as many as a CPU's cache holds beside the weights, or all."""
        if self._on_gpu:
            return shape.scenes
        scenes: int = self._imaginer.scenes_at_once(
            scenes=shape.scenes,
            rows=shape.members,
            prompt=shape.prompt,
            frames=shape.frames,
            action_dim=shape.action_dim,
            frame_tokens=shape.frame_tokens,
        )
        return scenes

    def rates(self) -> Rates:
        """What passes cost with the current number of threads; measured once."""
        threads = 0 if self._on_gpu else torch.get_num_threads()
        if threads not in self._rates:
            tokens = tuple(n for n in MEASURED_TOKENS if n <= self._positions) or (1,)
            seconds = tuple(self._imaginer.pass_seconds(n, **self._where()) for n in tokens)
            numbers = self.nbytes // self._element - self._embedding_numbers
            token = (seconds[-1] - seconds[0]) / max(1, tokens[-1] - tokens[0])
            pair = 2 * self.layers * self.heads * self.head_dim  # of a query and a position
            self._rates[threads] = Rates(
                tokens, seconds, max(0.0, token) * pair / numbers, seconds[0] / self.nbytes
            )
        return self._rates[threads]

    @property
    def held_bytes(self) -> int:
        """Bytes kept for the next imagination of the same shape, weights and prompts apart."""
        held: int = self._imaginer.held_bytes
        return held

    @property
    def capture_seconds(self) -> float:
        """Seconds that a GPU's graphs took to capture so far; 0 on a CPU."""
        return float(getattr(self._imaginer, "capture_seconds", 0.0))

    def release(self) -> None:
        """Free what is kept between calls."""
        self._imaginer.release()


def _head_dim(config: LlamaConfig) -> int:
    return int(config.head_dim or config.hidden_size // config.num_attention_heads)


def _ids(ids: Tensor) -> Tensor:
    return ids.detach().to("cpu", torch.int32).contiguous()
