"""Configuration of reinforcement fine-tuning: one group a noun, a sentence and a unit a field.

Defaults are those of the paper where it states them (spec, section 6), with the corrections listed
at the top of `trainer.py`.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlarft.config import Config
from vlarft.models.policy import Start
from vlarft.schedule import Schedule

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RewardConfig(Config):
    """What a rollout is worth: `-(l1 * L1 + lpips * LPIPS)`, reduced over its frames."""

    kind: Literal["imagined", "recorded", "actions", "success"] = "imagined"
    """Compare with the expert's imagination, with the recorded frames, or actions with actions;
    `success`: is the task solved in the last imagined frame, 0 or -1, whatever the expert did."""
    classifier: str | None = None
    """Folder of the success classifier, only with `kind: success`; null = the bundled one."""
    l1: NonNegative = 1.0
    """Weight of the mean absolute pixel difference (pixels in [0, 1])."""
    lpips: NonNegative = 1.0
    """Weight of the perceptual distance."""
    metric: Literal["lpips-alex", "lpips-vgg", "lpips-squeeze", "tokenizer-features"] = "lpips-vgg"
    """Network of the perceptual distance; the paper's is VGG-16, the demo bundles AlexNet."""
    aggregation: Literal["mean", "last", "discount"] = "mean"
    """How T frame distances become one: mean, last frame only, or discounted towards the end."""
    discount: Fraction = 0.95
    """Weight of a frame relative to the next one, only used by `aggregation: discount`."""
    frames: tuple[Positive, ...] | None = None
    """Imagined frames, 1..T and increasing, that are rendered and compared; null = all of them.

    Rendering is most of a step's work. Evaluations always take all frames."""
    mirrored: bool = False
    """Imagine each rollout's mirror image at the expert too, 2 * expert - actions, and take the
    mean of both distances: what a deviation and its opposite do not have in common cancels.

    A distance of pictures grows faster to one side of the expert than to the other, and an update
    follows: the mean of both is the same to either side. Costs twice the imagining."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.l1 == 0 and self.lpips == 0:
            raise ValueError("reward.l1 and reward.lpips are both 0: every rollout is worth 0")
        if self.mirrored and self.kind not in ("imagined", "recorded"):
            raise ValueError(
                f"reward.mirrored with reward.kind = {self.kind}, which compares no imagined "
                "frames; allowed with: imagined, recorded"
            )
        if self.classifier is not None and self.kind != "success":
            raise ValueError(
                f"reward.classifier is for reward.kind = success, not for {self.kind}; leave it out"
            )
        if self.frames is not None and (
            not self.frames or list(self.frames) != sorted(set(self.frames))
        ):
            raise ValueError(
                f"reward.frames = {list(self.frames)}: expected increasing frame numbers from 1"
            )
        return self


class AdvantageConfig(Config):
    """How the rewards of a group of rollouts become advantages."""

    kind: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    """Centred and divided by the group's std, centred only, or against the other members' mean."""
    std_floor: Annotated[float, Field(gt=0)] = 1e-6
    """Smallest reward std of a group that counts as a signal, in reward units."""
    noise_factor: NonNegative = 2.0
    """A group also needs this many times the measured noise floor of the reward."""


class ExplorationConfig(Config):
    """How a flow policy's rollouts differ from each other; null = as its own configuration says."""

    noisy_steps: Positive | None = None
    """The last steps of the flow that are stochastic; the paper: all K."""
    noise_correlation: Annotated[float, Field(ge=0, le=1)] | None = None
    """Correlation of the noise between a chunk's actions; the paper: 0."""
    antithetic: bool | None = None
    """Rollouts of a scene in pairs of opposite noise; needs `start: mean` or `shared`. The paper:
    none."""
    sigma_min: Annotated[float, Field(gt=0)] | None = None
    """Smallest standard deviation of a noisy step, normalised action units; the paper: 0.08."""
    sigma_max: Annotated[float, Field(gt=0)] | None = None
    """Largest; the paper: 0.2."""

    def settings(self) -> tuple[str, ...]:
        """As changes of a policy's configuration, key=value."""
        return tuple(f"{key}={value}" for key, value in self if value is not None)


class GateConfig(Config):
    """Groups whose next frames the world model does not know count less."""

    entropy: NonNegative | None = None
    """Mean token entropy of a window above which its group counts less, nats; null = off."""
    scale: NonNegative = 0.1
    """Weight exp(-excess / scale) of an excess over `entropy`, in nats; 0 = weight 0 above it."""


class ObjectiveConfig(Config):
    """The clipped objective and the terms beside it."""

    ratio: Literal["entry", "chunk"] = "entry"
    """One importance ratio per action entry (T * A of them), or one per action chunk."""
    credit: Literal["all", "symmetric"] = "all"
    """Entries of a chunk that an advantage credits: all, or those whose noise and its mirror image
    both stay in the range that the world model tells apart; `symmetric` needs `start: mean`.

    Actions are cut at the ends of their range, so noise that reaches across one shows its inner
    side only, which pushes the mean outwards. The less a policy errs, the more that counts."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Ratios below `1 - clip_low` give no gradient for negative advantages."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Ratios above `1 + clip_high` give no gradient for positive advantages."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    """Bound of the ratio for negative advantages; null switches it off."""
    entropy: NonNegative = 0.003
    """Coefficient of the entropy bonus, per nat."""
    anchor: NonNegative = 0.01
    """Constant coefficient of the behaviour-cloning (flow-matching) loss on expert actions."""
    kl: NonNegative = 0.0
    """Coefficient of the KL divergence to the policy at step 0, per nat; 0 = not computed."""
    epochs: Positive = 1
    """Passes over a batch of rollouts."""
    minibatches: Positive = 1
    """Optimiser updates per pass; scenes are split, groups stay whole."""


class OptimiserConfig(Config):
    """AdamW on float32 weights, one learning rate for the head and one for the Sigma Net."""

    head_lr: NonNegative = 1e-6
    """Learning rate of the flow head and projectors."""
    sigma_lr: NonNegative = 1e-5
    """Learning rate of the Sigma Net."""
    warmup: Count = 10
    """Steps of linear warm-up of both rates: `(step + 1) / warmup`; 0 = none."""
    schedule: Schedule = "constant"
    """Both rates after the warm-up: constant, or a cosine that falls to 2% at the run's end."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    """Decay rates of Adam's first and second moments."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay, times the learning rate per update."""
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global gradient norm over all trained parameters."""


class SamplingConfig(Config):
    """How the world model draws tokens."""

    temperature: NonNegative = 1.0
    """Softmax temperature; 0 = greedy."""
    top_p: Fraction = 0.8
    """Probability mass that may be drawn."""
    top_k: Positive | None = None
    """Number of tokens that may be drawn; null = all."""
    noise: Literal["shared", "independent"] = "shared"
    """One noise for a whole group and its expert, or one for each member."""
    draws: Positive = 1
    """Imaginations per rollout, whose distances are averaged; more = less sampling noise."""


class EvaluationConfig(Config):
    """Imagined distance to the expert on validation windows that training never sees."""

    interval: Count = 10
    """Steps between evaluations; 0 = only before the first and after the last step."""
    windows: Positive = 64
    """Number of validation windows, spread evenly over the validation episodes."""
    starts: Count = 2
    """Chunks of the policy per window, each from its own drawn start; their mean counts. 0: one
    chunk from the start's mean, as `vlarft eval libero` executes."""
    samples: Count = 0
    """Rollouts per window with the Sigma Net's noise, as in training, beside these; 0 = none."""
    batch: Positive = 16
    """Windows imagined at once."""
    seed: Count = 1234
    """Seed of the world model's noise and of stochastic samples, the same for every run seed."""


class RFTConfig(Config):
    """Everything that decides a reinforcement fine-tuning run."""

    section: ClassVar[str | None] = "rft"

    seed: Count = 0
    """Seed of data order, policy noise, world-model noise and the control's permutations."""
    steps: Positive = 400
    """Reinforcement-learning steps."""
    scenes: Positive = 16
    """Start states per step (P)."""
    rollouts: Annotated[int, Field(ge=2)] = 16
    """Rollouts per start state (N); at least 2, since advantages compare members of a group."""
    start: Start = "shared"
    """Start of the flow: one drawn for all rollouts of a scene, one for each, as in the paper, or
    its mean, from which `vlarft eval libero` executes a policy.

    The log-probability leaves the start out, so its share of a reward difference is noise. A policy
    whose `sample` takes no `start` needs `independent`.
    """
    control: Literal["none", "permuted"] = "none"
    """`permuted` shuffles the advantages within each group: the control arm of every claim."""
    checkpoint_interval: Positive = 50
    """Steps between checkpoints; the last step always writes one."""
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go beside `metrics.jsonl`."""
    reward: RewardConfig = RewardConfig()
    exploration: ExplorationConfig = ExplorationConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    gate: GateConfig = GateConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _minibatches_fit(self) -> Self:
        if self.objective.minibatches > self.scenes:
            raise ValueError(
                f"objective.minibatches = {self.objective.minibatches} exceeds "
                f"scenes = {self.scenes}: groups stay whole, so at most one minibatch per scene"
            )
        return self

    @model_validator(mode="after")
    def _credit_has_a_mean(self) -> Self:
        if self.objective.credit == "symmetric":
            if self.start != "mean":
                raise ValueError(
                    f"objective.credit = symmetric with start = {self.start}: noise is mirrored at "
                    "what is executed, so use start=mean"
                )
            if self.objective.ratio != "entry":
                raise ValueError(
                    "objective.credit = symmetric chooses among entries, which objective.ratio = "
                    "chunk joins; use objective.ratio=entry"
                )
        return self

    @model_validator(mode="after")
    def _pairs_start_alike(self) -> Self:
        if self.exploration.antithetic and self.start == "independent":
            raise ValueError(
                "exploration.antithetic with start = independent: rollouts of opposite noise are "
                "opposite only around one start, so use start=mean or start=shared"
            )
        return self

    @model_validator(mode="after")
    def _gate_has_a_world(self) -> Self:
        if self.gate.entropy is not None and self.reward.kind == "actions":
            raise ValueError(
                "gate.entropy is about the world model, which reward.kind = actions does not ask; "
                "leave the gate out"
            )
        return self
