"""The diffusion transformer (DiT) of flow head and Sigma Net, with the official state-dict keys.

Spec 4.3. A scene's context is shared by its n rollouts and all K steps, so everything that depends
on it alone (adapted tokens, cross-attention keys and values) is computed once, in `DiT.prepare`,
and broadcast. Shapes: P scenes, n rollouts, T actions, S context tokens, W width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlarft.config import Config
from vlarft.errors import CheckpointError
from vlarft.models.folder import load_strict

MAX_PERIOD = 10000.0


class HeadConfig(Config):
    """Size of one DiT; the defaults are the paper's."""

    width: int = Field(default=512, ge=8)
    """Channels of the residual stream; a multiple of 2 * heads."""
    heads: int = Field(default=8, ge=1)
    """Attention heads."""
    blocks: int = Field(default=8, ge=1)
    """Transformer blocks."""
    cross_blocks: tuple[int, ...] = (0, 2, 4, 6, 7)
    """Blocks whose cross-attention runs; the others keep dead weights for the official key set."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the MLP over `width`."""
    layer_scale: float = Field(default=1e-4, gt=0)
    """Initial `gamma_v` of the cross-attentions."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of attention weights; only while pre-training (spec 10, decision 7)."""
    time_features: int = Field(default=256, ge=2)
    """Sinusoids of the flow time; even."""

    @model_validator(mode="after")
    def _consistent(self) -> "HeadConfig":
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is not a multiple of 2 * heads = {2 * self.heads}"
            )
        if self.time_features % 2:
            raise ValueError(f"time_features {self.time_features} is odd")
        if any(not 0 <= block < self.blocks for block in self.cross_blocks):
            raise ValueError(f"cross_blocks {self.cross_blocks} outside 0..{self.blocks - 1}")
        return self


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a DiT computes once per scene.

    Attributes:
        base: [P, W], embedded proprioception + mean of the adapted context.
        keys_values: a block's index -> keys and values, each [P, heads, S, W / heads].
    """

    base: Tensor
    keys_values: dict[int, tuple[Tensor, Tensor]]


class ScalarProjector(nn.Module):
    """`fc2(gelu(fc1(x)))`: noisy actions (one scalar at a time) and proprioception (spec 1.1)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., width]."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return projected


class TimeEmbedder(nn.Module):
    """Flow time s in [0, 1] (not times 1000) to [cos, sin] features, then an MLP."""

    frequencies: Tensor

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        half = features // 2
        frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """[P] or [1] to [P or 1, W]."""
        angles = time[:, None].float() * self.frequencies
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedded


class SelfAttention(nn.Module):
    """Attention over the T actions of a chunk."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, dropout: float) -> Tensor:
        """[P, n, T, W] to the same shape."""
        scenes, n, length, width = x.shape
        packed = self.qkv(x).view(scenes * n, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        output: Tensor = self.proj(mixed.transpose(1, 2).reshape(scenes, n, length, width))
        return output


class ContextAttention(nn.Module):
    """The projections of a cross-attention: `v` is the action side, `l` the context side."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.v_proj = nn.Linear(width, width)
        self.l_proj = nn.Linear(width, width)
        self.values_l_proj = nn.Linear(width, width)
        self.out_v_proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """[P, L, W] to [P, heads, L, W / heads]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class CrossAttention(nn.Module):
    """x + gamma_v * attention(norm(x), norm(context)).

    All n * T queries of a scene meet its S keys in one product, so keys and values are never
    copied per rollout. Softmax is per row (the official maximum over the whole batch, defect 41,
    differs in rounding only).
    """

    def __init__(self, width: int, heads: int, layer_scale: float) -> None:
        super().__init__()
        self.gamma_v = nn.Parameter(torch.full((width,), layer_scale))
        self.layer_norm_v = nn.LayerNorm(width)
        self.layer_norm_l = nn.LayerNorm(width)
        self.attn = ContextAttention(width, heads)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Adapted context [P, S, W] to keys and values [P, heads, S, W / heads]."""
        normed = self.layer_norm_l(context)
        return self.attn.split(self.attn.l_proj(normed)), self.attn.split(
            self.attn.values_l_proj(normed)
        )

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], dropout: float) -> Tensor:
        """[P, n, T, W] to the same shape."""
        scenes, n, length, width = x.shape
        query = self.attn.v_proj(self.layer_norm_v(x)).view(scenes, n * length, width)
        mixed = F.scaled_dot_product_attention(
            self.attn.split(query), *keys_values, dropout_p=dropout
        )
        delta: Tensor = self.attn.out_v_proj(
            mixed.transpose(1, 2).reshape(scenes, n, length, width)
        )
        return x + self.gamma_v * delta


class FeedForward(nn.Module):
    """MLP with tanh-GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] to the same shape."""
        output: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return output


class Block(nn.Module):
    """adaLN-Zero block: self-attention, cross-attention (when it runs), MLP."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.attn_temporal = SelfAttention(config.width, config.heads)
        self.mlp = FeedForward(config.width, int(config.width * config.mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))
        self.cross_attn = CrossAttention(config.width, config.heads, config.layer_scale)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        keys_values: tuple[Tensor, Tensor] | None,
        dropout: float,
    ) -> Tensor:
        """One block over [P, n, T, W]; `condition` [P, W] serves all rollouts of a scene."""
        modulation = self.adaLN_modulation(condition)[:, None, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        x = x + gate_a * self.attn_temporal(_modulate(x, shift_a, scale_a), dropout)
        if keys_values is not None:
            x = self.cross_attn(x, keys_values, dropout)
        update: Tensor = gate_m * self.mlp(_modulate(x, shift_m, scale_m))
        return x + update


class FinalLayer(nn.Module):
    """adaLN, then the linear map to A numbers; both zero at initialisation."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[P, n, T, W] to [P, n, T, A]."""
        shift, scale = self.adaLN_modulation(condition)[:, None, None].chunk(2, dim=-1)
        output: Tensor = self.linear(_modulate(x, shift, scale))
        return output


class DiT(nn.Module):
    """Noisy chunk, time, context and proprioception to A numbers for each of T actions.

    Args:
        config: sizes.
        horizon: T.
        action_size: A.
        projector_width: width of projected scalars and of projected proprioception.
        context_width: width of the encoder's context tokens.
    """

    def __init__(
        self,
        config: HeadConfig,
        horizon: int,
        action_size: int,
        projector_width: int,
        context_width: int,
    ) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.temp_embed = nn.Parameter(position_table(horizon, width)[None], requires_grad=False)
        self.x_embedder = nn.Linear(action_size * projector_width, width)
        self.t_embedder = TimeEmbedder(width, config.time_features)
        self.proprio_embedder = nn.Linear(projector_width, width)
        self.context_adapter = nn.Linear(context_width, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.final_layer = FinalLayer(width, action_size)
        self._initialise()

    def prepare(self, context: Tensor, proprioception: Tensor) -> Conditions:
        """Everything that depends on the scene alone.

        Args:
            context: [P, S, context width].
            proprioception: [P, projector width], projected.
        """
        adapted = self.context_adapter(context)
        keys_values = {
            index: block.cross_attn.keys_values(adapted)
            for index, block in enumerate(self.blocks)
            if isinstance(block, Block) and index in self.config.cross_blocks
        }
        return Conditions(self.proprio_embedder(proprioception) + adapted.mean(1), keys_values)

    def forward(
        self, projected: Tensor, time: Tensor, conditions: Conditions, dropout: float = 0.0
    ) -> Tensor:
        """One evaluation.

        Args:
            projected: [P, n, T, A * projector width], projected noisy actions.
            time: [P], or [1] for all scenes; 0 = noise, 1 = data.
            conditions: from `prepare`.
            dropout: probability in the attentions.

        Returns:
            [P, n, T, A].
        """
        x = self.x_embedder(projected) + self.temp_embed
        condition = conditions.base + self.t_embedder(time)
        for index, block in enumerate(self.blocks):
            x = block(x, condition, conditions.keys_values.get(index), dropout)
        output: Tensor = self.final_layer(x, condition)
        return output

    def live_parameters(self) -> list[nn.Parameter]:
        """Parameters that can receive a gradient: no position table, no dead cross-attention."""
        dead = tuple(
            f"blocks.{index}.cross_attn."
            for index in range(self.config.blocks)
            if index not in self.config.cross_blocks
        )
        return [
            parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith(dead)
        ]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in self.t_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        zero = [
            module[1] for name, module in self.named_modules() if name.endswith("adaLN_modulation")
        ]
        for linear in (*zero, self.final_layer.linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


class FlowPredictor(nn.Module):
    """Holder of the DiT under the official key prefix."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit


class FlowHead(nn.Module):
    """The velocity u = noise - action; keys `flow_predictor.dit.*` (199 at paper size)."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.flow_predictor = FlowPredictor(dit)

    @property
    def dit(self) -> DiT:
        """The network itself."""
        return self.flow_predictor.dit

    def forward(
        self, projected: Tensor, time: Tensor, conditions: Conditions, dropout: float = 0.0
    ) -> Tensor:
        """Velocity [P, n, T, A]; arguments as `DiT.forward`."""
        velocity: Tensor = self.dit(projected, time, conditions, dropout)
        return velocity.float()


def position_table(length: int, width: int) -> Tensor:
    """Fixed positions [length, width]: the sine half first, then the cosine half."""
    frequencies = MAX_PERIOD ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def load_official(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a published head, Sigma Net or projector file; keys may carry the prefix `module.`.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape.
    """
    prefixed = [key.startswith("module.") for key in state]
    if any(prefixed) and not all(prefixed):
        raise CheckpointError(f"{where}: only some keys start with 'module.'; expected all or none")
    load_strict(module, {key.removeprefix("module."): value for key, value in state.items()}, where)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
