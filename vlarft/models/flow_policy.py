"""The flow-matching policy: context encoder, flow head, Sigma Net (spec 4.1 to 4.6).

Convention: x_s = (1 - s) * noise + s * action, velocity u = noise - action, so s = 0 is noise and
s = 1 is data, and an Euler step is x_{k+1} = x_k - u(x_k, k / K) / K. Reinforcement fine-tuning
samples x_{k+1} ~ N(that mean, sigma_k^2). `_moments` and `_score` are the only code that knows a
step's distribution: sampling and scoring both go through them, so unchanged weights give the same
log-probability and the first ratio is 1.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlarft.config import Config, load_config
from vlarft.data.actions import ActionNormalizer, ProprioceptionNormalizer
from vlarft.data.libero import ORIENTATION
from vlarft.data.statistics import Statistics
from vlarft.errors import CheckpointError, ConfigError, DataError, ShapeError
from vlarft.files import write_json
from vlarft.models.flow_head import Conditions, DiT, FlowHead, HeadConfig, ScalarProjector
from vlarft.models.folder import load_strict, read_json, read_tensors, write_tensors
from vlarft.models.place_encoder import PlaceEncoder, PlaceEncoderConfig, PlaceNetwork
from vlarft.models.policy import (
    Indices,
    LogProb,
    Observation,
    Proposal,
    Share,
    Start,
    as_indices,
)
from vlarft.models.sigma_net import SigmaNet
from vlarft.models.small_encoder import SmallEncoder, SmallEncoderConfig
from vlarft.models.vlm import TOKENIZER_FOLDER, VLMConfig, VLMEncoder, load_tokenizer

EncoderConfig = SmallEncoderConfig | PlaceEncoderConfig | VLMConfig
Encoder = SmallEncoder | PlaceEncoder | VLMEncoder
Storage = Literal["float32", "bfloat16", "float16"]
WEIGHTS_FILE = "model.safetensors"
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class FlowPolicyConfig(Config):
    """A flow-matching policy; the defaults are the paper's."""

    encoder: Annotated[EncoderConfig, Field(discriminator="kind")] = VLMConfig()
    """The context encoder; `kind` is `vlm`, `small` or `places`."""
    head: HeadConfig = HeadConfig()
    """The flow head."""
    sigma: HeadConfig = HeadConfig()
    """The Sigma Net."""
    projector_width: int = Field(default=896, ge=1)
    """Width of projected noisy actions and of projected proprioception."""
    horizon: int = Field(default=8, ge=1)
    """T, actions of a chunk."""
    action_size: int = Field(default=7, ge=2)
    """A, numbers of an action, the gripper last."""
    proprioception_size: int = Field(default=8, ge=1)
    """Numbers of the proprioception."""
    steps: int = Field(default=10, ge=1)
    """K, Euler steps; step k starts at s = k / K exactly."""
    noisy_steps: int | None = Field(default=None, ge=1)
    """The last steps that are stochastic in `sample`, the others follow the ODE; null = all K.

    Fewer cost less: only noisy steps are scored, the others run once for a group that shares its
    start. They also explore less: one step of ten gives half the spread. The paper has all."""
    noise_correlation: float = Field(default=0.0, ge=0, le=1)
    """Correlation of a step's noise between a chunk's actions; each entry's distribution stays, and
    so does its log-probability. At 0 (the paper) displacements average out over a chunk."""
    antithetic: bool = False
    """Rollouts come in pairs, 2k and 2k + 1 of a scene, of opposite noise; each rollout's own
    distribution stays, and so does its log-probability. What a reward says alike for a deviation
    and its opposite leaves the gradient; from one start of the flow (`start`), that is."""
    sigma_min: float = Field(default=0.08, gt=0)
    """Smallest standard deviation of a step, normalised action units."""
    sigma_max: float = Field(default=0.2, gt=0)
    """Largest."""
    noise_scale: Literal["sigma", "sigma_sqrt_dt"] = "sigma"
    """Standard deviation of a step: sigma (official), or sigma / sqrt(K), independent of K."""
    log_prob: Literal["mean", "sum"] = "mean"
    """How the stochastic steps combine (spec 11.12)."""
    time_sampling: Literal["uniform", "official"] = "official"
    """Flow times of pre-training; `official` leans to the clean end (spec 4.3, defect 30)."""

    @model_validator(mode="after")
    def _consistent(self) -> "FlowPolicyConfig":
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} is above sigma_max {self.sigma_max}")
        if self.noisy_steps is not None and self.noisy_steps > self.steps:
            raise ValueError(f"noisy_steps {self.noisy_steps} is above steps {self.steps}")
        return self

    @classmethod
    def preset(cls, name: str) -> "FlowPolicyConfig":
        """A named size: `tiny` (tests), `small` (64 px, from scratch, fits a CPU), `paper`.

        `places` is `small` on a pre-trained encoder that says where the named things are.

        Raises:
            ConfigError: no preset of that name.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown policy preset '{name}'; known: {', '.join(PRESETS)}")
        return PRESETS[name]


# LayerScale starts at 1: trained from scratch, the head must see its context from the first step;
# 1e-4 protects a pre-trained one.
_SMALL_HEADS: dict[str, Any] = {
    "head": HeadConfig(
        width=96, heads=4, blocks=4, cross_blocks=(0, 1, 2, 3), mlp_ratio=2, time_features=64,
        layer_scale=1.0, dropout=0,
    ),
    "sigma": HeadConfig(
        width=48, heads=2, blocks=2, cross_blocks=(0, 1), mlp_ratio=2, time_features=64,
        layer_scale=1.0, dropout=0,
    ),
    "projector_width": 64,
    "time_sampling": "uniform",
}  # fmt: skip

PRESETS: dict[str, FlowPolicyConfig] = {
    "tiny": FlowPolicyConfig(
        encoder=SmallEncoderConfig(image_size=32, channels=(8, 8, 8), width=16, max_words=12),
        head=HeadConfig(
            width=16, heads=2, blocks=2, cross_blocks=(0, 1), mlp_ratio=2, time_features=16,
            layer_scale=1.0, dropout=0,
        ),
        sigma=HeadConfig(
            width=16, heads=2, blocks=1, cross_blocks=(0,), mlp_ratio=2, time_features=16,
            layer_scale=1.0, dropout=0,
        ),
        projector_width=8,
        time_sampling="uniform",
    ),
    "small": FlowPolicyConfig(encoder=SmallEncoderConfig(), **_SMALL_HEADS),
    "places": FlowPolicyConfig(encoder=PlaceEncoderConfig(), **_SMALL_HEADS),
    "paper": FlowPolicyConfig(),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class SceneContext:
    """What the encoder says about P scenes, without gradients when frozen.

    Attributes:
        tokens: float32 [P, S, context width].
        proprioception: float32 [P, 8], normalised to [-1, 1].
    """

    tokens: Tensor
    proprioception: Tensor

    def select(self, indices: Indices) -> "SceneContext":
        """The scenes at `indices`."""
        chosen = as_indices(indices).to(self.tokens.device)
        return SceneContext(self.tokens[chosen], self.proprioception[chosen])


@dataclass(frozen=True, eq=False)
class FlowTrace:
    """The stochastic path of a proposal.

    Attributes:
        chain: float32 [P, n, k + 1, T, A], normalised, before and after each of the k stochastic
            steps (all K by default); the last entry holds the actions.
        context: the frozen context that it was drawn under.
    """

    chain: Tensor
    context: SceneContext

    def select(self, indices: Indices) -> "FlowTrace":
        """The scenes at `indices`."""
        chosen = as_indices(indices).to(self.chain.device)
        return FlowTrace(self.chain[chosen], self.context.select(chosen))


class FlowPolicy(nn.Module):
    """A policy over chunks of T actions; weights, chain and log-probabilities are fp32.

    Args:
        config: sizes and conventions.
        statistics: of the training data, for normalisation; its orientation is checked.
        encoder: built from `config.encoder` when None.

    Raises:
        DataError: the statistics are of frames turned another way, or of other sizes.
    """

    def __init__(
        self,
        config: FlowPolicyConfig,
        statistics: Statistics,
        encoder: Encoder | None = None,
    ) -> None:
        super().__init__()
        _check_statistics(statistics, config)
        self.config, self.statistics = config, statistics
        with torch.device("cpu"):  # values even when the weights are built on the meta device
            self.actions = ActionNormalizer(statistics.action_q01, statistics.action_q99)
            self.proprioception = ProprioceptionNormalizer(
                statistics.proprioception_q01, statistics.proprioception_q99
            )
        self.encoder = encoder if encoder is not None else _build_encoder(config.encoder)
        self.noisy_action_projector = ScalarProjector(1, config.projector_width)
        self.proprio_projector = ScalarProjector(config.proprioception_size, config.projector_width)
        self.flow_head = FlowHead(self._dit(config.head))
        self.sigma_net = SigmaNet(self._dit(config.sigma), config.sigma_min, config.sigma_max)

    @torch.no_grad()
    def encode(self, observation: Observation) -> SceneContext:
        """The frozen context of each scene, computed once and shared by rollouts and steps."""
        return self._encode(observation)

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        n: int,
        generator: torch.Generator,
        *,
        start: Start = "independent",
        share: Share | None = None,
    ) -> Proposal:
        """Draw n chunks a scene by K flow steps, the last `noisy_steps` of them stochastic.

        Args:
            observation: P scenes.
            n: rollouts a scene, 1 or more.
            generator: source of all noise, on any device.
            start: x_0 of the flow: drawn for each chunk, drawn once for all chunks of a scene
                ("shared"), or its mean, 0, from which `act` goes without a generator. The start's
                density is left out of the log-probability (arXiv 2510.00406), so what a
                drawn one does to the reward is noise.
            share: which scenes of a larger batch these are; None: all of it.

        Returns:
            Actions in raw units, their log-probabilities and the chain.

        Raises:
            ShapeError: n is below 1.
        """
        if n < 1:
            raise ShapeError(f"sample: n = {n}; expected 1 or more rollouts a scene")
        context = self.encode(observation)
        flow, sigma = self._conditions(context)
        if start == "mean":
            x = self._mean_start(context)
        else:
            x = self._noise(len(observation), 1 if start == "shared" else n, generator, share)
        noisy = range(self.config.steps - self._noisy, self.config.steps)
        x = self._follow(x, range(noisy.start), flow)  # the same for a whole group
        x = x.expand(-1, n, -1, -1).contiguous()
        chain, total, executed = [x], torch.zeros_like(x), None
        for k in noisy:
            mean, log_sigma = self._moments(k, x, flow, sigma)
            if start == "mean" and k == noisy.start:  # where all of a group still are alike
                end = self._follow(mean[:, :1], noisy[1:], flow)
                executed = self.actions.denormalize(end[:, 0])
            x = mean + log_sigma.exp() * self._step_noise(len(observation), n, generator, share)
            total = total + _score(x, mean, log_sigma)
            chain.append(x)
        trace = FlowTrace(torch.stack(chain, dim=2), context)
        return Proposal(self.actions.denormalize(x), self._combine(total), trace, executed)

    def log_prob(self, observation: Observation, proposal: Proposal) -> LogProb:
        """Score a stored chain; gradients reach heads and projectors, never the encoder.

        Args:
            observation: the P scenes of the proposal.
            proposal: from this policy's `sample`, or a selection of its scenes.

        Raises:
            ShapeError: the proposal is not this policy's, or of another number of scenes.
        """
        trace = proposal.trace
        if not isinstance(trace, FlowTrace) or trace.chain.shape[2] != self._noisy + 1:
            raise ShapeError(
                f"log_prob: expected a proposal of a flow policy with {self._noisy} noisy steps"
            )
        if len(observation) != len(trace.chain):
            raise ShapeError(
                f"log_prob: {len(observation)} scenes observed, {len(trace.chain)} in the "
                f"proposal; select both with the same indices"
            )
        flow, sigma = self._conditions(trace.context)
        chain = trace.chain
        total, spread = torch.zeros_like(chain[:, :, 0]), torch.zeros_like(chain[:, :, 0])
        first = self.config.steps - self._noisy
        for number in range(self._noisy):
            state = chain[:, :, number].contiguous()  # as in `sample`, for the same bits
            mean, log_sigma = self._moments(first + number, state, flow, sigma)
            total = total + _score(chain[:, :, number + 1], mean, log_sigma)
            spread = spread + log_sigma
        # Over steps, not states (defect 16); entropy of a Gaussian = log sigma + 0.5 log(2 pi e).
        entropy = spread / self._noisy + (HALF_LOG_2PI + 0.5)
        return LogProb(self._combine(total), entropy)

    @torch.no_grad()
    def act(self, observation: Observation, generator: torch.Generator | None = None) -> Tensor:
        """The flow's ODE, without Sigma Net, as evaluated in the paper.

        Args:
            observation: P scenes.
            generator: draws the start of the flow; None starts at its mean, 0, so that the result
                depends on the observation alone.

        Returns:
            float32 [P, T, A], raw units, the gripper continuous.
        """
        if generator is None:
            return self.executed(observation)
        context = self.encode(observation)
        return self._chunk(context, self._noise(len(observation), 1, generator))

    def executed(self, observation: Observation) -> Tensor:
        """What `act` gives without a generator, with gradients of heads and projectors.

        Args:
            observation: P scenes.

        Returns:
            float32 [P, T, A], raw units, the gripper continuous.
        """
        context = self.encode(observation)
        return self._chunk(context, self._mean_start(context))

    def flow_loss(
        self,
        observation: Observation,
        actions: Tensor,
        generator: torch.Generator,
        context: SceneContext | None = None,
        share: Share | None = None,
    ) -> Tensor:
        """Flow-matching loss of demonstrated chunks: mean squared error of the velocity.

        Dropout is active only here, and only in training mode.

        Args:
            observation: P scenes.
            actions: float [P, T, A], raw units.
            generator: source of noise and flow times, separate from the rollouts' (defect 49).
            context: frozen context of the scenes (`encode`, or a trace's); None runs the encoder
                with gradients, for pre-training.
            share: which scenes of a larger batch these are; None: all of it.

        Returns:
            A scalar.

        Raises:
            ShapeError: actions are not [P, T, A].
        """
        expected = (len(observation), self.config.horizon, self.config.action_size)
        if actions.shape != expected:
            raise ShapeError(f"flow_loss: actions {list(actions.shape)}; expected {list(expected)}")
        if context is None:
            context = self._encode(observation)
        conditions = self._condition(self.flow_head.dit, context)
        target = self.actions.normalize(actions.to(context.tokens.device).float())[:, None]
        noise = self._noise(len(observation), 1, generator, share)
        time = self._times(len(observation), generator, share)
        s = time[:, None, None, None]
        x = (1 - s) * noise + s * target
        dropout = self.config.head.dropout if self.training else 0.0
        velocity: Tensor = self.flow_head(self._project(x), time, conditions, dropout)
        return (velocity - (noise - target)).square().mean()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What fine-tuning trains: `head` (flow head and both projectors) and `sigma`.

        The encoder is frozen; dead cross-attention (defect 40) is left out, so that weight decay
        does not move weights without a gradient.
        """
        projectors = [
            *self.noisy_action_projector.parameters(),
            *self.proprio_projector.parameters(),
        ]
        return {
            "head": [*self.flow_head.dit.live_parameters(), *projectors],
            "sigma": self.sigma_net.dit.live_parameters(),
        }

    def pretraining_parameters(self) -> list[nn.Parameter]:
        """What behaviour cloning trains: the encoder's trainable weights and the `head` group."""
        encoder = [p for p in self.encoder.parameters() if p.requires_grad]
        return [*encoder, *self.parameter_groups()["head"]]

    def freeze_encoder(self) -> Self:
        """Take the encoder out of every gradient; for fine-tuning."""
        self.encoder.requires_grad_(False)
        return self

    def save_pretrained(self, folder: str | Path, dtype: Storage = "float32") -> None:
        """Write `config.json`, `model.safetensors`, `statistics.json` (and a VLM's tokenizer).

        A new folder appears only when it is complete; in an existing one each file is replaced
        atomically, the weights last.

        Args:
            folder: the policy folder.
            dtype: storage of the weights. Half precision is for shipping: it rounds away updates
                as small as fine-tuning's (defect 5), so continue training from float32 only.

        Raises:
            CheckpointError: a weight is beyond the range of `dtype`.
        """
        folder = Path(folder)
        stored = self._stored(getattr(torch, dtype))
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
        # The encoder's own configuration: merging LoRA changes it.
        config = self.config.model_copy(update={"encoder": self.encoder.config})
        write_json(partial / "config.json", config.model_dump(mode="json"))
        write_json(partial / "statistics.json", self.statistics.to_dict())
        if isinstance(self.encoder, VLMEncoder):
            self.encoder.save_tokenizer(partial)
        write_tensors(partial / WEIGHTS_FILE, stored)
        if not folder.exists():
            partial.rename(folder)
            return
        files = [file.relative_to(partial) for file in partial.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda name: name.name == WEIGHTS_FILE):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (partial / file).replace(folder / file)
        for empty in sorted((d for d in partial.rglob("*") if d.is_dir()), reverse=True):
            empty.rmdir()
        partial.rmdir()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        attention: Literal["sdpa", "flash-attn", "xformers"] | None = None,
        settings: Sequence[str] = (),
    ) -> Self:
        """Read a policy folder.

        Args:
            folder: as written by `save_pretrained`.
            settings: changes of its config.json that leave all shapes, such as `sigma_max=0.3`.
            attention: overrides the VLM's stored attention; refused for the small encoder.

        Raises:
            CheckpointError: a file is missing or damaged, a key or shape differs, or the policy
                was trained on frames turned another way.
            BackendError: the attention is not available.
        """
        folder = Path(folder)
        try:
            config = load_config(FlowPolicyConfig, read_json(folder / "config.json"), settings)
            statistics = Statistics.from_dict(read_json(folder / "statistics.json"))
            _check_statistics(statistics, config)
        except (ConfigError, DataError) as error:
            raise CheckpointError(f"{folder}: {error}") from error
        encoder: Encoder | None = None
        if isinstance(config.encoder, VLMConfig):
            chosen = config.encoder
            if attention is not None:
                chosen = chosen.model_copy(update={"attention": attention})
                config = config.model_copy(update={"encoder": chosen})
            tokenizer = folder / TOKENIZER_FOLDER
            encoder = VLMEncoder(chosen, load_tokenizer(tokenizer) if tokenizer.is_dir() else None)
        elif attention is not None:
            raise ConfigError(f"attention '{attention}': only a VLM encoder has that choice")
        policy = cls(config, statistics, encoder)
        load_strict(policy, read_tensors(folder), str(folder / WEIGHTS_FILE))
        if settings:  # the file holds the bounds as well
            policy.sigma_net.set_bounds(config.sigma_min, config.sigma_max)
        return policy

    @property
    def _noisy(self) -> int:
        """Stochastic steps of a sample."""
        return self.config.noisy_steps or self.config.steps

    def _dit(self, size: HeadConfig) -> DiT:
        config = self.config
        return DiT(
            size, config.horizon, config.action_size, config.projector_width, self.encoder.width
        )

    def _encode(self, observation: Observation) -> SceneContext:
        tokens = self.encoder(observation).float()
        state = observation.proprioception
        if state.shape[-1] != self.config.proprioception_size:
            raise ShapeError(
                f"policy: proprioception {list(state.shape)}; "
                f"expected [P, {self.config.proprioception_size}]"
            )
        return SceneContext(tokens, self.proprioception.normalize(state.float()).to(tokens.device))

    def _condition(self, dit: DiT, context: SceneContext) -> Conditions:
        return dit.prepare(context.tokens, self.proprio_projector(context.proprioception))

    def _conditions(self, context: SceneContext) -> tuple[Conditions, Conditions]:
        return (
            self._condition(self.flow_head.dit, context),
            self._condition(self.sigma_net.dit, context),
        )

    def _project(self, x: Tensor) -> Tensor:
        """Each scalar of [P, n, T, A] separately, then the A vectors of an action joined."""
        projected: Tensor = self.noisy_action_projector(x[..., None])
        return projected.flatten(-2)

    def _time(self, k: int, like: Tensor) -> Tensor:
        """Start of step k, exactly k / K in fp32 (defect 12)."""
        return torch.full((1,), k / self.config.steps, dtype=torch.float32, device=like.device)

    def _velocity(self, k: int, x: Tensor, flow: Conditions) -> Tensor:
        velocity: Tensor = self.flow_head(self._project(x), self._time(k, x), flow)
        return velocity

    def _follow(self, x: Tensor, steps: range, flow: Conditions) -> Tensor:
        """Some steps of the flow's ODE, without noise."""
        for k in steps:
            x = x - self._velocity(k, x, flow) / self.config.steps
        return x

    def _chunk(self, context: SceneContext, start: Tensor) -> Tensor:
        flow = self._condition(self.flow_head.dit, context)
        return self.actions.denormalize(self._follow(start, range(self.config.steps), flow)[:, 0])

    def _moments(
        self, k: int, x: Tensor, flow: Conditions, sigma: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of x_{k+1} given x_k, each [P, n, T, A]."""
        projected, time = self._project(x), self._time(k, x)
        mean = x - self.flow_head(projected, time, flow) / self.config.steps
        log_sigma: Tensor = self.sigma_net(projected, time, sigma)
        if self.config.noise_scale == "sigma_sqrt_dt":
            log_sigma = log_sigma - 0.5 * math.log(self.config.steps)
        return mean, log_sigma

    def _combine(self, total: Tensor) -> Tensor:
        return total / self._noisy if self.config.log_prob == "mean" else total

    def _mean_start(self, context: SceneContext) -> Tensor:
        shape = (len(context.tokens), 1, self.config.horizon, self.config.action_size)
        return context.tokens.new_zeros(shape, dtype=torch.float32)

    def _noise(
        self, scenes: int, n: int, generator: torch.Generator, share: Share | None = None
    ) -> Tensor:
        drawn = scenes if share is None else share.total
        shape = (drawn, n, self.config.horizon, self.config.action_size)
        noise = torch.randn(shape, generator=generator, device=generator.device)
        if share is not None:
            noise = noise[share.rows.to(noise.device)]
        return noise.to(self.sigma_net.log_std_min.device)

    def _step_noise(
        self, scenes: int, n: int, generator: torch.Generator, share: Share | None
    ) -> Tensor:
        drawn = (n + 1) // 2 if self.config.antithetic else n
        noise, common = self._noise(scenes, drawn, generator, share), self.config.noise_correlation
        if common:
            shared = self._noise(scenes, drawn, generator, share)[:, :, :1]
            noise = math.sqrt(1 - common) * noise + math.sqrt(common) * shared
        if self.config.antithetic:
            noise = torch.stack([noise, -noise], dim=2).flatten(1, 2)[:, :n]
        return noise

    def _times(self, scenes: int, generator: torch.Generator, share: Share | None = None) -> Tensor:
        drawn = scenes if share is None else share.total
        uniform = torch.rand((2, drawn), generator=generator, device=generator.device)
        if share is not None:
            uniform = uniform[:, share.rows.to(uniform.device)]
        uniform = uniform.to(self.sigma_net.log_std_min.device)
        if self.config.time_sampling == "uniform":
            return uniform[0]
        first = uniform[0].clamp_min(1e-12) ** (2 / 3)  # both exactly 0 would give 0 / 0
        return 0.001 + 0.999 * first / (first + uniform[1])

    def _stored(self, dtype: torch.dtype) -> dict[str, Tensor]:
        # Buffers keep fp32: rounded log bounds would move sigma (defect 14).
        parameters = {name for name, _ in self.named_parameters()}
        stored = {}
        for key, value in self.state_dict().items():
            stored[key] = value.to(dtype) if key in parameters else value
            if not torch.isfinite(stored[key]).all():
                raise CheckpointError(f"weight '{key}' is not finite in {dtype}; nothing was saved")
        return stored


def build_policy(
    preset: str | FlowPolicyConfig,
    statistics: Statistics,
    seed: int = 0,
    vlm: VLMEncoder | None = None,
    places: PlaceNetwork | None = None,
) -> FlowPolicy:
    """A policy with random weights that depend on the seed alone, a given network apart.

    Args:
        preset: `tiny`, `small`, `paper`, or a configuration.
        statistics: of the training data.
        seed: of the initial weights; the global random state is left as it was.
        vlm: a pre-trained context encoder; its sizes win over the configuration's, and it gets LoRA
            adapters when the configuration asks for some and it has none.
        places: a pre-trained place network; likewise, its sizes win.

    Raises:
        ConfigError: no preset of that name, or a network for a policy without one of its kind.
    """
    config = FlowPolicyConfig.preset(preset) if isinstance(preset, str) else preset
    wanted = config.encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if places is not None:
            return _with_places(config, statistics, places)
        if vlm is None:
            return FlowPolicy(config, statistics)
        if not isinstance(wanted, VLMConfig):
            raise ConfigError(
                f"a VLM was given, but the policy's encoder is '{wanted.kind}'; "
                "choose a policy with a VLM, such as --config paper"
            )
        if wanted.lora_rank and not vlm.config.lora_rank:
            vlm.add_lora(wanted.lora_rank, wanted.lora_alpha)
        return FlowPolicy(config.model_copy(update={"encoder": vlm.config}), statistics, vlm)


def _with_places(
    config: FlowPolicyConfig, statistics: Statistics, places: PlaceNetwork
) -> FlowPolicy:
    wanted = config.encoder
    if not isinstance(wanted, PlaceEncoderConfig):
        raise ConfigError(
            f"a place network was given, but the policy's encoder is '{wanted.kind}'; "
            "choose a policy with one: policy=places"
        )
    sizes = places.config.model_copy(update={"width": wanted.width})
    policy = FlowPolicy(config.model_copy(update={"encoder": sizes}), statistics)
    assert isinstance(policy.encoder, PlaceEncoder)
    policy.encoder.where.load_state_dict(places.state_dict())
    return policy


def _build_encoder(config: EncoderConfig) -> Encoder:
    if isinstance(config, VLMConfig):
        return VLMEncoder(config)
    return PlaceEncoder(config) if isinstance(config, PlaceEncoderConfig) else SmallEncoder(config)


def _check_statistics(statistics: Statistics, config: FlowPolicyConfig) -> None:
    if statistics.orientation != ORIENTATION:
        raise DataError(
            f"statistics.json: orientation '{statistics.orientation}'; this project's frames are "
            f"'{ORIENTATION}'"
        )
    sizes = len(statistics.action_q01), len(statistics.proprioception_q01)
    if sizes != (config.action_size, config.proprioception_size):
        raise DataError(
            f"statistics.json: {sizes[0]} action and {sizes[1]} proprioception entries; the policy "
            f"has {config.action_size} and {config.proprioception_size}"
        )


def _score(x: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """Log density N(x; mean, sigma^2), per entry."""
    return -0.5 * ((x - mean) * torch.exp(-log_sigma)).square() - log_sigma - HALF_LOG_2PI
