"""Imagine: a Llama forward with a two-level key/value cache.

The prompt of a scene (context and first frame) is prefilled once and shared by the M members of its
group: attention against it is one matrix product over the group. Each member has only its own
suffix, which its first action opens. All rows advance in lockstep; a pass takes either one token a
row or, at a frame border, [last token of the frame, A action tokens]. Logits are computed only
where a token is sampled, and only for frame codes. Nothing is prefilled twice and no token visits
the host before all frames are done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from vlarft.errors import UnsupportedModelError
from vlarft.reference import float8
from vlarft.reference.attention import Attention
from vlarft.reference.noise import gumbel
from vlarft.reference.sample import sample

_STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies independent of the length
_NOISE_ELEMENTS = 1 << 20  # Gumbel variables computed at once: many positions for small batches


@dataclass(frozen=True)
class Layer:
    """Weights of one layer; projections that read the same input are joined."""

    input_norm: Tensor  # [h]
    qkv: Tensor  # [(Hq + 2 Hkv) D, h]; query rows carry the attention scale
    qkv_bias: Tensor | None
    out: Tensor  # [h, Hq D]
    out_bias: Tensor | None
    post_norm: Tensor  # [h]
    gate_up: Tensor  # [2 I, h]
    gate_up_bias: Tensor | None
    down: Tensor  # [h, I]
    down_bias: Tensor | None
    key_scale: Tensor | None  # [Hkv, 1] where keys and values are rounded to float8, or None
    value_scale: Tensor | None


@dataclass(frozen=True)
class Weights:
    """A Llama laid out for generation, in one dtype on one device."""

    layers: tuple[Layer, ...]
    embedding: Tensor  # [V, h]
    norm: Tensor  # [h]
    head: Tensor  # [frame codes, h]: other ids are never sampled
    cos: Tensor  # [positions, 1, D]
    sin: Tensor  # [positions, 1, D], the first half negated: rotation needs no sign change
    heads: int  # Hq
    kv_heads: int  # Hkv
    head_dim: int  # D
    eps: float

    @property
    def tensors(self) -> list[Tensor]:
        """Every stored tensor."""
        own = [self.embedding, self.norm, self.head, self.cos, self.sin]
        return own + [t for layer in self.layers for t in vars(layer).values() if t is not None]


def unsupported(config: LlamaConfig) -> list[str]:
    """Reasons why a transformer configuration cannot be run; empty when it can."""
    reasons = []
    if config.model_type != "llama":
        reasons.append(f"model_type = '{config.model_type}' (supported: llama)")
    if config.hidden_act != "silu":
        reasons.append(f"hidden_act = '{config.hidden_act}' (supported: silu)")
    if getattr(config, "sliding_window", None) is not None:
        reasons.append(f"sliding_window = {config.sliding_window} (supported: none)")
    if getattr(config, "quantization_config", None) is not None:
        reasons.append("quantization_config is set (supported: float weights)")
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in _STATIC_ROPE:
        reasons.append(f"rope_type = '{rope}' (supported: {', '.join(_STATIC_ROPE)})")
    return reasons


def load_weights(
    model: LlamaForCausalLM,
    frame_codes: int,
    positions: int,
    device: torch.device,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
) -> Weights:
    """Copy a transformer's weights into the layout of generation.

    Args:
        model: transformers' Llama.
        frame_codes: ids 0 .. frame_codes-1 may be sampled.
        positions: longest sequence, prompt included.
        device: where to run.
        dtype: float32 or bfloat16.
        cache_dtype: float8_e4m3fn rounds keys and values to it (they stay in `dtype`: the error of
            such a cache, none of its memory); None: as computed.

    Raises:
        UnsupportedModelError: the configuration has something that this forward does not compute.
    """
    config: LlamaConfig = model.config
    reasons = unsupported(config)
    if reasons:
        raise UnsupportedModelError(f"transformer cannot be run: {'; '.join(reasons)}")
    head_dim = int(config.head_dim or config.hidden_size // config.num_attention_heads)
    scale = head_dim**-0.5

    def place(*parts: Tensor) -> Tensor:
        joined = torch.cat(parts) if len(parts) > 1 else parts[0].detach().clone()
        return joined.detach().to(device, dtype)

    def bias(*parts: Tensor | None) -> Tensor | None:
        present = [p for p in parts if p is not None]
        return place(*present) if present else None

    def scaled(query_bias: Tensor | None) -> Tensor | None:
        return None if query_bias is None else query_bias * scale

    rotary = model.model.rotary_emb
    index = torch.arange(positions, device=rotary.inv_freq.device)[None]
    cos, sin = rotary(torch.zeros(1, dtype=torch.float32, device=index.device), index)
    turn = float(cos[0, 0, 0].abs())  # the first position's angle is 0

    def scales(attention: Any, norm: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if cache_dtype is None:
            return None, None
        keys = float8.key_scale(attention.k_proj, norm, head_dim, turn)
        return place(keys), place(float8.value_scale(attention.v_proj, norm, head_dim))

    layers = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        key_scale, value_scale = scales(attention, layer.input_layernorm.weight)
        q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        layers.append(
            Layer(
                input_norm=place(layer.input_layernorm.weight),
                qkv=place(q.weight * scale, k.weight, v.weight),
                qkv_bias=bias(scaled(q.bias), k.bias, v.bias),
                out=place(o.weight),
                out_bias=bias(o.bias),
                post_norm=place(layer.post_attention_layernorm.weight),
                gate_up=place(mlp.gate_proj.weight, mlp.up_proj.weight),
                gate_up_bias=bias(mlp.gate_proj.bias, mlp.up_proj.bias),
                down=place(mlp.down_proj.weight),
                down_bias=bias(mlp.down_proj.bias),
                key_scale=key_scale,
                value_scale=value_scale,
            )
        )
    sign = torch.ones(head_dim, device=sin.device)
    sign[: head_dim // 2] = -1
    return Weights(
        layers=tuple(layers),
        embedding=place(model.model.embed_tokens.weight),
        norm=place(model.model.norm.weight),
        head=place(model.lm_head.weight[:frame_codes]),
        cos=place(cos[0, :, None]),
        sin=place(sin[0, :, None] * sign),
        heads=int(config.num_attention_heads),
        kv_heads=int(config.num_key_value_heads or config.num_attention_heads),
        head_dim=head_dim,
        eps=float(config.rms_norm_eps),
    )


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the scenes' prompts, [layers, P, Hkv, S, D]."""

    keys: Tensor
    values: Tensor

    @property
    def scenes(self) -> int:
        """P."""
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        """S."""
        return self.keys.shape[3]

    def select(self, scenes: Tensor | slice) -> "Prefix":
        """Some of the scenes."""
        return Prefix(self.keys[:, scenes], self.values[:, scenes])


class Suffix:
    """Preallocated keys and values of every member's own tokens.

    Laid out [layers, P, Hkv, M, positions, D]: members of a group are neighbours within a head, so
    the same query tensor serves the product with the prefix (M rows together) and with the suffix
    (row by row) without a permutation.
    """

    def __init__(self, weights: Weights, scenes: int, members: int, positions: int) -> None:
        head = (scenes, weights.kv_heads, members, positions, weights.head_dim)
        shape = (len(weights.layers), *head)
        self.keys, self.values = weights.head.new_empty(shape), weights.head.new_empty(shape)
        self.length = 0


def prefill(weights: Weights, ids: Tensor, attention: Attention) -> Prefix:
    """Run the scenes' prompts once.

    The prompt ends with a frame whose action opens each member's suffix, so no logits are needed
    and the last layer ends at its keys and values.

    Args:
        weights: the transformer.
        ids: prompts, int64 [P,S].
        attention: causal attention kernel.
    """
    scenes, length = ids.shape
    shape = (len(weights.layers), scenes, weights.kv_heads, length, weights.head_dim)
    prefix = Prefix(weights.head.new_empty(shape), weights.head.new_empty(shape))
    x = F.embedding(ids, weights.embedding).flatten(0, 1)
    for i, layer in enumerate(weights.layers):
        q, k, v = _project(weights, layer, x, scenes, 0, length)
        prefix.keys[i], prefix.values[i] = k.transpose(1, 2), v.transpose(1, 2)
        if i + 1 < len(weights.layers):
            out = attention(q.transpose(1, 2), prefix.keys[i], prefix.values[i])
            x = _finish(weights, layer, x, out.transpose(1, 2).reshape(scenes * length, -1))
    return prefix


def extend(weights: Weights, prefix: Prefix, suffix: Suffix, ids: Tensor) -> Tensor:
    """One pass: append tokens to every member's suffix.

    Args:
        weights: the transformer.
        prefix: the scenes' prompts.
        suffix: written in place from its `length` on, which grows by W.
        ids: int64 [R,W], rows ordered (scene, member).

    Returns:
        Normalised hidden state of each row's last token, [R,h].
    """
    rows, width = ids.shape
    scenes, members = prefix.scenes, rows // prefix.scenes
    start, end = suffix.length, suffix.length + width
    causal = None
    if width > 1:
        allowed = torch.ones(width, end, dtype=torch.bool, device=ids.device).tril(start)
        causal = torch.zeros(width, end, dtype=weights.head.dtype, device=ids.device)
        causal.masked_fill_(~allowed, float("-inf"))
    x = F.embedding(ids, weights.embedding).flatten(0, 1)
    for i, layer in enumerate(weights.layers):
        q, k, v = _project(weights, layer, x, rows, prefix.length + start, width)
        own_keys, own_values = suffix.keys[i, ..., :end, :], suffix.values[i, ..., :end, :]
        into = (scenes, members, width, weights.kv_heads, weights.head_dim)
        own_keys[..., start:, :] = k.view(into).permute(0, 3, 1, 2, 4)
        own_values[..., start:, :] = v.reshape(into).permute(0, 3, 1, 2, 4)
        level = (prefix.keys[i], prefix.values[i], own_keys, own_values)
        x = _finish(weights, layer, x, _two_level_attention(q, *level, causal))
    suffix.length = end
    return F.rms_norm(x.view(rows, width, -1)[:, -1], weights.norm.shape, weights.norm, weights.eps)


def _project(
    weights: Weights, layer: Layer, x: Tensor, rows: int, start: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated, scaled queries [rows,width,Hq,D], rotated keys and values [rows,width,Hkv,D]."""
    normed = F.rms_norm(x, layer.input_norm.shape, layer.input_norm, weights.eps)
    qkv = F.linear(normed, layer.qkv, layer.qkv_bias).view(rows, width, -1, weights.head_dim)
    turning, v = qkv.split((weights.heads + weights.kv_heads, weights.kv_heads), dim=2)
    cos, sin = weights.cos[start : start + width], weights.sin[start : start + width]
    # roll by D/2 swaps the halves; `sin` carries rotate_half's minus sign
    turned = turning * cos + turning.roll(weights.head_dim // 2, -1) * sin
    q, k = turned.split((weights.heads, weights.kv_heads), dim=2)
    if layer.key_scale is not None and layer.value_scale is not None:
        k, v = float8.rounded(k, layer.key_scale), float8.rounded(v, layer.value_scale)
    return q, k, v


def _finish(weights: Weights, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
    """Output projection, gated MLP, both with their residual: [rows*width, h]."""
    x = x + F.linear(attended, layer.out, layer.out_bias)
    normed = F.rms_norm(x, layer.post_norm.shape, layer.post_norm, weights.eps)
    gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate).mul_(up), layer.down, layer.down_bias)


def _two_level_attention(
    q: Tensor,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    causal: Tensor | None,
) -> Tensor:
    """softmax([q Kp^T, q Ks^T]) [Vp; Vs]: one softmax over both levels' scores, in float32.

    Args:
        q: scaled and rotated, [R,W,Hq,D] with R = P M.
        prefix_keys: [P,Hkv,S,D].
        prefix_values: [P,Hkv,S,D].
        own_keys: [P,Hkv,M,L,D].
        own_values: [P,Hkv,M,L,D].
        causal: additive mask of the chunk, [W,L]; None when every position may be seen.

    Returns:
        [R W, Hq D].
    """
    rows, width, heads, dim = q.shape
    scenes, kv_heads, members, length, _ = own_keys.shape
    groups, prompt = heads // kv_heads, prefix_keys.shape[2]
    queries = q.view(scenes, members, width, kv_heads, groups, dim).permute(0, 3, 1, 4, 2, 5)
    near_q = queries.reshape(scenes * kv_heads * members, groups * width, dim)
    far_q = near_q.reshape(scenes * kv_heads, members * groups * width, dim)

    far = torch.bmm(far_q, prefix_keys.flatten(0, 1).transpose(1, 2))
    near = torch.bmm(near_q, own_keys.flatten(0, 2).transpose(1, 2))
    if causal is not None:
        near = (near.view(-1, groups, width, length) + causal).view(-1, groups * width, length)
    scores = torch.cat((far, near.view(*far.shape[:2], length)), dim=-1)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)

    out = torch.bmm(shares[..., :prompt], prefix_values.flatten(0, 1)).view_as(near_q)
    near_shares = shares[..., prompt:].reshape(-1, groups * width, length)
    out = torch.baddbmm(out, near_shares, own_values.flatten(0, 2))
    back = out.view(scenes, kv_heads, members, groups, width, dim).permute(0, 2, 4, 1, 3, 5)
    return back.reshape(rows * width, heads * dim)


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: one imagination's sampling settings, resolved."""

    seed: int
    temperature: float
    top_k: int | None
    top_p: float
    keys: Tensor  # scene keys, int64 [P]
    members: Tensor  # member words, int64 [1] (shared noise) or [M]


def imagine(
    weights: Weights,
    prefix: Prefix,
    suffix: Suffix,
    actions: Tensor,
    frame_tokens: int,
    draw: Draw,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Imagine all frames of all members.

    Args:
        weights: the transformer.
        prefix: the scenes' prompts.
        suffix: empty (`length` 0), with room for T (A + K) - 1 positions.
        actions: action ids, int64 [P,M,T,A].
        frame_tokens: K.
        draw: sampling settings.
        progress: called with the number of finished frames, 1 .. T.

    Returns:
        Frame tokens int64 [P,M,T,K]; -1 everywhere in a row whose logits were not finite.
    """
    scenes, members, frames, _ = actions.shape
    rows = scenes * members
    device, codes = actions.device, weights.head.shape[0]
    greedy = draw.temperature == 0
    twin = _first_twins(actions) if greedy or draw.members.numel() == 1 else None
    tokens = torch.empty(frames, frame_tokens, rows, dtype=torch.int64, device=device)
    finite = torch.ones(rows, dtype=torch.bool, device=device)
    chunk = max(1, _NOISE_ELEMENTS // (scenes * draw.members.numel() * codes))
    border = actions.transpose(1, 2).transpose(0, 1).reshape(frames, rows, -1)
    noise: Tensor | None = None
    for frame in range(frames):
        ids = border[frame]
        if frame > 0:
            ids = torch.cat((tokens[frame - 1, -1][:, None], ids), dim=1)
        for position in range(frame_tokens):
            hidden = extend(weights, prefix, suffix, ids)
            logits = F.linear(hidden, weights.head).float()
            finite &= logits.isfinite().all(-1)
            if not greedy and position % chunk == 0:
                first = frame * frame_tokens + position
                last = min(first + chunk, (frame + 1) * frame_tokens)
                places = torch.arange(first, last, device=device)
                noise = gumbel(draw.seed, draw.keys, draw.members, places, codes)
            chosen = sample(
                logits.view(scenes, members, codes),
                None if noise is None else noise[:, :, position % chunk],
                temperature=draw.temperature,
                top_k=draw.top_k,
                top_p=draw.top_p,
            ).view(rows)
            if twin is not None:
                chosen = chosen[twin[frame]]
            tokens[frame, position] = chosen
            ids = chosen[:, None]
        if progress is not None:
            progress(frame + 1)
    out = tokens.permute(2, 0, 1).masked_fill(~finite[:, None, None], -1)
    return out.reshape(scenes, members, frames, frame_tokens)


def _first_twins(actions: Tensor) -> Tensor:
    """For every frame and row, the group's first row with the same actions up to that frame.

    Under one noise such rows imagine the same tokens. Rows of one matrix product may differ in the
    last bit, so the first twin's token is taken for all: equal actions give equal imaginations
    exactly, which makes the distance of an expert to itself exactly 0.

    Args:
        actions: action ids, int64 [P,M,T,A].

    Returns:
        Row numbers int64 [T, P M].
    """
    scenes, members, frames, _ = actions.shape
    rows = scenes * members
    numbers = torch.arange(rows, device=actions.device)
    group = numbers // members
    twins = []
    for frame in range(frames):
        past = torch.cat((group[:, None], actions.flatten(0, 1)[:, frame]), dim=1)
        # `group` becomes the class of rows that share scene and all actions so far
        classes, group = past.unique(dim=0, return_inverse=True)
        first = numbers.new_full((classes.shape[0],), rows)
        first.scatter_reduce_(0, group, numbers, "amin")
        twins.append(first[group])
    return torch.stack(twins)
