"""Bytes and operations that a stage cannot do without, counted from configurations.

Every byte moved once, every multiplication done once; a multiply-add counts as two operations.
What a cleverer algorithm leaves out (speculation, Winograd) is not subtracted.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vlarft.bench.cases import Case
from vlarft.models.world_model import WorldModel


@dataclass(frozen=True)
class Work:
    """`count` passes that depend on each other; pass i takes `flops + i flops_step` operations.

    Attributes:
        what: for people.
        flops: operations of the first pass.
        bytes: bytes that the first pass moves.
        count: number of passes.
        flops_step: more operations from one pass to the next.
        bytes_step: more bytes from one pass to the next.
    """

    what: str
    flops: float
    bytes: float
    count: int = 1
    flops_step: float = 0.0
    bytes_step: float = 0.0

    @property
    def total_flops(self) -> float:
        """Operations of all passes."""
        return self.count * self.flops + self.count * (self.count - 1) / 2 * self.flops_step

    @property
    def total_bytes(self) -> float:
        """Bytes of all passes."""
        return self.count * self.bytes + self.count * (self.count - 1) / 2 * self.bytes_step

    def floor_seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """No pass ends before its bytes are read and its multiplications done."""
        return sum(
            max(
                (self.bytes + i * self.bytes_step) / bytes_per_second,
                (self.flops + i * self.flops_step) / flops_per_second,
            )
            for i in range(self.count)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def floor_seconds(work: Sequence[Work], bytes_per_second: float, flops_per_second: float) -> float:
    """Sum over the passes of max(bytes / bandwidth, operations / rate)."""
    return sum(w.floor_seconds(bytes_per_second, flops_per_second) for w in work)


@dataclass(frozen=True)
class Transformer:
    """Sizes from which the counts of token generation follow.

    Attributes:
        layers: number of layers.
        hidden: width.
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: entries of a head.
        ffn: width of the gated MLP.
        codes: ids that may be sampled; only their logits are needed.
        prompt: S, tokens shared by a scene's group.
        frame_tokens: K.
        action_dim: A.
        element: bytes of a stored weight or activation.
        cache_element: bytes of an entry of a stored key or value.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    codes: int
    prompt: int
    frame_tokens: int
    action_dim: int
    element: int
    cache_element: int

    @staticmethod
    def of(
        world: WorldModel, dtype: torch.dtype, cache: torch.dtype | None = None
    ) -> "Transformer":
        """Sizes of a world model's transformer; without `cache` keys and values are in `dtype`."""
        config = world.transformer.config
        heads = int(config.num_attention_heads)
        return Transformer(
            layers=int(config.num_hidden_layers),
            hidden=int(config.hidden_size),
            heads=heads,
            kv_heads=int(config.num_key_value_heads or heads),
            head_dim=int(config.head_dim or config.hidden_size // heads),
            ffn=int(config.intermediate_size),
            codes=world.frame_codes,
            prompt=world.prompt_length,
            frame_tokens=world.frame_tokens,
            action_dim=world.layout.action_dim,
            element=dtype.itemsize,
            cache_element=(cache or dtype).itemsize,
        )

    @property
    def key_value_weights(self) -> int:
        """Weights of one layer's key and value projections."""
        return 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices."""
        attention = 2 * self.hidden * self.heads * self.head_dim + self.key_value_weights
        return attention + 3 * self.hidden * self.ffn

    @property
    def block_weights(self) -> int:
        """Weights that every token passes."""
        return self.layers * self.layer_weights

    @property
    def head_weights(self) -> int:
        """Weights of the logits of frame codes."""
        return self.hidden * self.codes

    @property
    def key_value_elements(self) -> int:
        """Cache elements of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def attention_flops(self, pairs: float, layers: int) -> float:
        """Scores and weighted sum of (query, key) pairs."""
        return 4.0 * layers * self.heads * self.head_dim * pairs


def prefill_work(t: Transformer, scenes: int) -> list[Work]:
    """The prompts, once a scene; the last layer ends at its keys and values."""
    tokens, full = scenes * t.prompt, t.layers - 1
    pairs = scenes * t.prompt * (t.prompt + 1) / 2
    weights = full * t.layer_weights + t.key_value_weights
    flops = 2.0 * tokens * weights + t.attention_flops(pairs, full)
    moved = (weights + tokens * t.hidden) * t.element
    moved += tokens * t.key_value_elements * t.cache_element
    return [Work("prefill", flops, moved)]


def _pass(
    t: Transformer, scenes: int, rollouts: int, before: int, width: int
) -> tuple[float, float]:
    """Operations and bytes of a pass of `width` tokens a row after `before` suffix tokens.

    Weights are read once a pass, a prompt's cache once a group, a row's own once.
    """
    rows, after = scenes * rollouts, before + width
    seen = width * (t.prompt + before) + width * (width + 1) / 2  # causal inside the chunk
    flops = rows * (
        2.0 * width * t.block_weights + t.attention_flops(seen, t.layers) + 2.0 * t.head_weights
    )
    cache = (scenes * t.prompt + rows * after) * t.key_value_elements
    moved = (t.block_weights + t.head_weights + rows * width * t.hidden) * t.element
    return flops, moved + cache * t.cache_element


def generate_work(t: Transformer, scenes: int, rollouts: int, frames: int) -> list[Work]:
    """Token generation, pass by pass.

    At each frame border a chunk of the last token and A actions (A at the first), then K - 1 passes
    of one token a row.
    """
    work: list[Work] = []
    length = 0
    for frame in range(frames):
        width = t.action_dim + int(frame > 0)
        flops, moved = _pass(t, scenes, rollouts, length, width)
        work.append(Work(f"frame {frame + 1}, actions", flops, moved))
        length += width
        singles = t.frame_tokens - 1
        if singles:
            flops, moved = _pass(t, scenes, rollouts, length, 1)
            next_flops, next_moved = _pass(t, scenes, rollouts, length + 1, 1)
            steps = (next_flops - flops, next_moved - moved)
            work.append(Work(f"frame {frame + 1}, tokens", flops, moved, singles, *steps))
        length += singles
    return work


def pass_kernels(t: Transformer, scenes: int, rollouts: int, frames: int) -> list[Work]:
    """A GPU's kernels of one pass of one token a row, half way through a rollout.

    Together they are what `generate_work` counts for that pass; `count` is how often a pass has the
    kernel, the other numbers are of one launch. Names are those that profilers show.
    """
    rows = scenes * rollouts
    before = frames * (t.action_dim + t.frame_tokens) // 2
    wide = t.heads * t.head_dim
    cache = (scenes * t.prompt + rows * (before + 1)) * t.key_value_elements / t.layers

    def product(what: str, weights: int, count: int = t.layers) -> Work:
        return Work(f"product_*<{what}", 2.0 * rows * weights, weights * t.element, count)

    return [
        Work("embed_kernel", 0.0, rows * t.hidden * t.element),
        product("StoreQkv>", t.hidden * wide + t.key_value_weights),
        Work(
            "attention_kernel",
            rows * t.attention_flops(t.prompt + before + 1, 1),
            cache * t.cache_element,
            t.layers,
        ),
        product("StoreResidual> of output", t.hidden * wide),
        product("StoreGated>", 2 * t.hidden * t.ffn),
        product("StoreResidual> of down", t.hidden * t.ffn),
        product("StoreLogits>", t.head_weights, 1),
    ]


def module_work(
    what: str, modules: Sequence[nn.Module], call: Callable[[], Any], times: int
) -> list[Work]:
    """Operations and bytes of `times` equal calls, counted by running one.

    Bytes: input and output of every convolution and linear layer once for each call, weights once
    for all. Norms, activations and residuals are taken as fused into their neighbours.

    Args:
        what: for people.
        modules: whose layers are counted.
        call: runs them once, on real or meta tensors.
        times: how often the stage does that.
    """
    moved = 0
    weights: dict[int, int] = {}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += inputs[0].nbytes + output.nbytes
        for weight in layer.parameters():
            weights[id(weight)] = weight.nbytes

    with ExitStack() as stack:
        for layer in {m for module in modules for m in module.modules()}:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                stack.callback(layer.register_forward_hook(count).remove)
        counter = stack.enter_context(FlopCounterMode(display=False))
        stack.enter_context(torch.no_grad())
        call()
    flops = float(counter.get_total_flops())
    return [Work(what, times * flops, times * moved + sum(weights.values()))]


def imagine_work(
    world: WorldModel, dtype: torch.dtype, case: Case, cache: torch.dtype | None = None
) -> list[Work]:
    """Prefill and generation of a case."""
    t = Transformer.of(world, dtype, cache)
    return prefill_work(t, case.scenes) + generate_work(t, case.scenes, case.rollouts, case.frames)
