"""RolloutEngine: encode > imagine > decode > compare, and all four as `rollout`."""

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from numpy.typing import NDArray
from torch import Tensor

from vlarft.engine.checks import check_shape, check_tokens
from vlarft.engine.compare import (
    Distances,
    check_comparable,
    check_reference,
    compare_frames,
)
from vlarft.engine.decode import decode_tokens, new_frames, scene_features
from vlarft.engine.encode import check_frames, encode_frames
from vlarft.engine.imagine import Imagined, check_actions, imagine_group, prefill_scenes
from vlarft.engine.native import Prompts
from vlarft.engine.parts import Parts
from vlarft.engine.plan import Plan, parse_bytes
from vlarft.engine.planner import Planner
from vlarft.engine.resolve import (
    resolve_backend,
    resolve_cache_dtype,
    resolve_device,
    resolve_dtype,
)
from vlarft.engine.sampling import Sampling
from vlarft.engine.scenes import Scenes, scene_keys
from vlarft.engine.speculate import SOURCES
from vlarft.engine.stats import Stopwatch, nvtx_range, resident_bytes
from vlarft.engine.stream import Stream
from vlarft.errors import CheckpointError, ConfigError, ShapeError
from vlarft.models.tokenizer import DecoderFeatures
from vlarft.models.world_model import WorldModel
from vlarft.reference.attention import causal_attention
from vlarft.reference.compare import Metric
from vlarft.reference.imagine import Prefix

log = logging.getLogger("vlarft")

Keep = Literal["tokens", "frames"]


@dataclass(frozen=True)
class RolloutResult:
    """Distances of imagined rollouts to their reference.

    Attributes:
        l1: mean absolute pixel difference, float32 [P,N,T].
        perceptual: the engine's metric, float32 [P,N,T].
        l1_by_seed: as `l1`, for each noise seed, [S,P,N,T]; `l1` is its mean.
        perceptual_by_seed: likewise.
        tokens: int64 [P,N,T,K] when kept.
        frames: float32 [P,N,T,3,H,W] in [0,1] when kept.
        expert_tokens: int64 [P,T,K] when tokens are kept and an expert was imagined.
        expert_frames: float32 [P,T,3,H,W] when frames are kept and an expert was imagined.
        stats: see docs/compare.md.
    """

    l1: Tensor
    perceptual: Tensor
    l1_by_seed: Tensor
    perceptual_by_seed: Tensor
    tokens: Tensor | None = None
    frames: Tensor | None = None
    expert_tokens: Tensor | None = None
    expert_frames: Tensor | None = None
    stats: dict[str, Any] = field(default_factory=dict)


class RolloutEngine:
    """Imagines rollouts of actions and measures how far they are from the expert's.

    Weights are copied once, at construction: later changes of `world` have no effect. Results are
    ordinary tensors on the engine's device, outside any autograd graph.

    Args:
        world: the world model.
        backend: "reference" (plain PyTorch), "native", or "auto" (native where it supports the
            model; the choice is logged).
        device: "cpu" or "cuda".
        dtype: "float32" or "bfloat16", of the transformer and the decoder. Encoding, sampling and
            distances are float32 always.
            On a GPU the native back end runs LPIPS' backbone in it too.
        cache_dtype: "float8_e4m3fn" keeps the transformer's keys and values in one byte each on a
            GPU's native back end. Others round them likewise and keep them in `dtype`, which shows
            the error and saves nothing. None: `dtype`.
        metric: "lpips-vgg", "lpips-alex", "lpips-squeeze" or "tokenizer-features" (or an object
            with `features` and `distance`); weights are loaded at the first comparison.
        metric_file: the metric's weights, when not where `LPIPS.load` looks.
        memory_limit: bytes or "8GiB" for everything the engine holds; None: most of what is free.
        attention: kernel of the prompt's prefill: "sdpa", "flash-attn" or "xformers".

    Raises:
        BackendError: back end, device or attention kernel cannot run here.
        UnsupportedModelError: the transformer has a feature that the back end does not compute.
        ConfigError: an option is unknown.
    """

    def __init__(
        self,
        world: WorldModel,
        *,
        backend: str = "auto",
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        cache_dtype: str | torch.dtype | None = None,
        metric: str | Metric = "lpips-vgg",
        metric_file: str | Path | None = None,
        memory_limit: int | str | None = None,
        attention: str = "sdpa",
    ) -> None:
        # What the process held without the engine; the world's transformer is part of the plan.
        outside = resident_bytes() - sum(
            p.nbytes for p in world.transformer.parameters() if p.device.type == "cpu"
        )
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype)
        self.cache_dtype = resolve_cache_dtype(cache_dtype)
        self.backend, reason = resolve_backend(
            backend, self.device, attention, world.transformer.config
        )
        limit = None if memory_limit is None else parse_bytes(memory_limit)
        self._attention = causal_attention(attention, self.device, self.dtype)
        self._parts = Parts(
            world, self.backend, self.device, self.dtype, self.cache_dtype, metric, metric_file
        )
        self.metric, self.world = self._parts.metric_name, self._parts.world
        self._planner = Planner(self._parts, self.device, limit, outside)
        self._filled: weakref.WeakSet[Scenes] = weakref.WeakSet()
        if backend == "auto":
            why = f" ({reason})" if reason else ""
            log.info("engine: %s, %s on %s%s", self._parts.kernels, dtype, self.device, why)

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Self:
        """Load a world folder (or a hub id) and build an engine; options as in the constructor.

        Raises:
            CheckpointError: not a world folder, or the hub id cannot be fetched.
        """
        path = Path(folder)
        if (
            not path.exists()
            and str(folder).count("/") == 1
            and not str(folder).startswith((".", "/"))
        ):
            try:
                path = Path(snapshot_download(str(folder)))
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(
                    f"{folder}: neither a folder nor a hub id that can be fetched ({reason}); "
                    "give a folder with tokenizer/, transformer/ and layout.json"
                ) from error
        return cls(WorldModel.from_pretrained(path), **options)

    # --- stages -----------------------------------------------------------------------------

    def encode(
        self, frames: Tensor | NDArray[np.uint8], keys: Tensor | Sequence[int] | None = None
    ) -> Scenes:
        """Tokenise the first frames of scenes.

        Args:
            frames: uint8 [P,H,W,3].
            keys: noise keys [P] in [0, 2^32); default 0 .. P-1.

        Raises:
            ShapeError, DtypeError: not uint8 [P,H,W,3] at the tokenizer's resolution.
        """
        pixels = check_frames(frames, self.world.tokenizer.config.resolution)
        noise_keys = scene_keys(keys, len(pixels), self.device)
        with torch.inference_mode():
            context, first = encode_frames(
                self._parts.encoder, pixels, self._planner.encode_batch, self.device
            )
        return Scenes(context.clone(), first.clone(), noise_keys)

    def scenes_from_tokens(
        self, context: Tensor, first: Tensor, keys: Tensor | Sequence[int] | None = None
    ) -> Scenes:
        """Scenes of frames that are tokenised already.

        Args:
            context: context tokens, integers [P,K0], without vocabulary offset.
            first: first frame's tokens, integers [P,K].
            keys: noise keys [P]; default 0 .. P-1.

        Raises:
            ShapeError, DtypeError, DataError: wrong shape, not integers, or out of range.
        """
        check_shape("context", context, ("P", self.world.context_tokens))
        check_shape("first", first, (len(context), self.world.frame_tokens))
        check_tokens("context", context, self.world.tokenizer.context_codes)
        check_tokens("first", first, self.world.frame_codes)
        context, first = (t.to(self.device, torch.int64, copy=True) for t in (context, first))
        return Scenes(context, first, scene_keys(keys, len(context), self.device))

    def prefill(self, scenes: Scenes) -> None:
        """Compute the scenes' prompts now instead of at their first `imagine`; they are kept."""
        with torch.inference_mode():
            self._prefix(scenes)

    def imagine(
        self,
        scenes: Scenes,
        actions: Tensor,
        sampling: Sampling | None = None,
        *,
        expert_actions: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Imagined:
        """Imagine the frames that follow from actions.

        Args:
            scenes: P scenes.
            actions: raw units, floating [P,N,T,A], T at most the layout's frames.
            sampling: settings; default `Sampling()`.
            expert_actions: raw, [P,T,A]: one more member of each group.
            progress: called with the number of finished frames, 1 .. T.

        Raises:
            ShapeError, DtypeError, DataError: wrong actions, by argument name.
            PlanError: it does not fit in memory.
            BackendError: the transformer's logits are not finite.
        """
        watch = Stopwatch(self.device)
        actions, expert_actions = self._check_actions(scenes, actions, expert_actions)
        sampling = sampling or Sampling()
        plan = self._planner.plan(
            len(scenes),
            actions.shape[1],
            actions.shape[2],
            expert_actions is not None,
            False,
            sampling.speculate,
        )
        return self._imagine(scenes, actions, expert_actions, sampling, watch, progress, plan)

    def decode(self, scenes: Scenes, tokens: Tensor) -> Tensor:
        """Render frames.

        Args:
            scenes: P scenes.
            tokens: frame codes, integers [P,N,T,K].

        Returns:
            float32 [P,N,T,3,H,W], clamped to [0, 1].

        Raises:
            ShapeError, DtypeError, DataError: wrong shape, not integers, or out of range.
            BackendError: the decoder produced NaN.
        """
        check_shape("tokens", tokens, (len(scenes), "N", "T", self.world.frame_tokens))
        check_tokens("tokens", tokens, self.world.frame_codes)
        codes = tokens.to(self.device, torch.int64)
        size = self.world.tokenizer.config.resolution
        out = new_frames(codes.shape[0], codes.shape[1], codes.shape[2], size, self.device)
        with torch.inference_mode():
            features = self._features(scenes)
            decode_tokens(
                self._parts.decoder,
                features,
                codes.flatten(1, 2),
                self._planner.decode_batch,
                out.flatten(1, 2),
            )
        return out

    def compare(self, frames: Tensor, reference: Tensor) -> Distances:
        """Distances of frames to reference frames, in float32.

        Args:
            frames: floating [P,N,T,3,H,W] in [0, 1].
            reference: floating [P,T,3,H,W] in [0, 1].

        Returns:
            `.l1` (mean absolute difference over 3 H W) and `.perceptual`, float32 [P,N,T]; both
            exactly 0 where a frame equals its reference.

        Raises:
            ShapeError, DtypeError, DataError: wrong shape, dtype, or values outside [0, 1], NaN or
                infinite, by argument name.
            CheckpointError: the metric's weights are missing.
        """
        check_comparable(frames, reference)
        frames, reference = (t.detach().to(self.device, torch.float32) for t in (frames, reference))
        groups, batch = self._planner.scenes_at_once(frames.shape[2]), self._planner.compare_batch
        with torch.inference_mode():
            near, far = compare_frames(self._parts.metric, frames, reference, groups, batch)
        return Distances(near.clone(), far.clone())

    # --- all of it --------------------------------------------------------------------------

    @nvtx_range("rollout")
    def rollout(
        self,
        scenes: Scenes,
        actions: Tensor,
        expert_actions: Tensor | None = None,
        sampling: Sampling | None = None,
        *,
        reference: Tensor | None = None,
        keep: Sequence[Keep] = (),
        seeds: Sequence[int] | None = None,
        times: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> RolloutResult:
        """Imagine, decode and compare; frames stream through and are kept only on request.

        Args:
            scenes: P scenes.
            actions: raw units, [P,N,T,A].
            expert_actions: raw, [P,T,A]: imagined as one more member of each group, the reference.
            sampling: settings; default `Sampling()`.
            reference: recorded frames, floating [P,T,3,H,W] in [0, 1], instead of an expert.
            keep: any of "tokens", "frames".
            seeds: noise seeds to average distances over, instead of `sampling.seed`.
            times: frames to render and compare, increasing, 0 .. T-1; default all. The distances
                are [P,N,len(times)] then. Every frame is imagined all the same.
            progress: called with the number of imagined frames, 1 .. T, for each seed.

        Raises:
            ConfigError: both or no reference, an unknown `keep`, `keep` with several seeds, wrong
                `times`, or `times` with kept frames.
            ShapeError, DtypeError, DataError: wrong input, by argument name.
            PlanError: it does not fit in memory; the message names the largest N or P that fits.
        """
        sampling = sampling or Sampling()
        if (expert_actions is None) == (reference is None):
            raise ConfigError("rollout: give either expert_actions or reference")
        if unknown := sorted(set(keep) - {"tokens", "frames"}):
            raise ConfigError(f"keep = {unknown}; allowed: tokens, frames")
        draws = (sampling.seed,) if seeds is None else tuple(seeds)
        if not draws or (keep and len(draws) > 1):
            raise ConfigError(
                f"seeds = {list(draws)}: give at least one, and exactly one with keep"
            )
        actions, expert_actions = self._check_actions(scenes, actions, expert_actions)
        if reference is not None:
            size = self.world.tokenizer.config.resolution
            check_reference(reference, len(scenes), actions.shape[2], (size, size))
            reference = reference.detach().to(self.device, torch.float32)
        expert = expert_actions is not None
        rollouts, frames = actions.shape[1:3]
        plan = self._planner.plan(
            len(scenes), rollouts, frames, expert, "frames" in keep, sampling.speculate
        )
        shown = _check_times(times, frames, keep)
        if shown is not None and reference is not None:
            reference = reference[:, shown]

        watch, counts = Stopwatch(self.device), {"frames": 0, "rendered": 0}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        near, far, generated = [], [], []
        kept: dict[str, Tensor | None] = {}
        for seed in draws:
            drawn = Sampling(**{**sampling.model_dump(), "seed": seed})
            imagined = self._imagine(scenes, actions, expert_actions, drawn, watch, progress, plan)
            generated.append(imagined.stats)
            kept_frames = self._new_kept_frames(imagined, "frames" in keep)
            seen = imagined if shown is None else imagined.at(shown)
            with torch.inference_mode():
                d1, d2 = self._judge(scenes, seen, reference, kept_frames, watch, counts)
            near.append(d1.clone())
            far.append(d2.clone())
            if "tokens" in keep:
                kept |= {"tokens": imagined.tokens, "expert_tokens": imagined.expert_tokens}
            if kept_frames is not None:
                kept["frames"] = kept_frames[:, : actions.shape[1]]
                kept["expert_frames"] = kept_frames[:, -1] if expert else None
        l1, perceptual = torch.stack(near), torch.stack(far)
        self._planner.learn(plan, expert, watch.seconds, generated)
        stats = self._stats(watch, counts, plan, generated, expert)
        return RolloutResult(l1.mean(0), perceptual.mean(0), l1, perceptual, stats=stats, **kept)

    def plan(
        self,
        scenes: int,
        rollouts: int,
        *,
        frames: int | None = None,
        expert: bool = True,
        keep: Sequence[Keep] = (),
        speculate: str = "auto",
    ) -> Plan:
        """What a rollout would take.

        Args:
            scenes: P.
            rollouts: N.
            frames: T; default the layout's.
            expert: whether an expert is imagined as well.
            keep: as in `rollout`.
            speculate: as in `Sampling`.

        Raises:
            PlanError: it does not fit; the message names the largest N or P that fits.
            ConfigError: unknown `speculate`.
            ShapeError: a count below 1, or more frames than the layout's.
        """
        most = self.world.layout.frames
        frames = most if frames is None else frames
        if min(scenes, rollouts, frames) < 1 or frames > most:
            raise ShapeError(
                f"plan: scenes {scenes}, rollouts {rollouts}, frames {frames}; each must be at "
                f"least 1, frames at most {most}"
            )
        if speculate not in SOURCES:
            raise ConfigError(f"speculate = '{speculate}'; allowed: {', '.join(SOURCES)}")
        return self._planner.plan(scenes, rollouts, frames, expert, "frames" in keep, speculate)

    def release(self) -> None:
        """Give cached memory back: suffix caches, buffers, metric, and what scenes hold."""
        self._parts.release()
        for scenes in list(self._filled):
            scenes.release()
        self._filled.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def capture_seconds(self) -> float:
        """Seconds that a GPU's graphs took to capture so far; 0 on a CPU."""
        return self._parts.capture_seconds

    @property
    def memory_limit(self) -> int:
        """Bytes that the engine may hold, its weights included."""
        return self._planner.memory_limit

    # --- inside -----------------------------------------------------------------------------

    def _check_actions(
        self, scenes: Scenes, actions: Tensor, expert: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        layout = self.world.layout
        shape = (len(scenes), "N", "T", layout.action_dim)
        actions = check_actions("actions", actions, shape, layout.frames, self.device)
        if expert is None:
            return actions, None
        same = (len(scenes), actions.shape[2], layout.action_dim)
        return actions, check_actions("expert_actions", expert, same, layout.frames, self.device)

    def _imagine(
        self,
        scenes: Scenes,
        actions: Tensor,
        expert: Tensor | None,
        sampling: Sampling,
        watch: Stopwatch,
        progress: Callable[[int], None] | None,
        plan: Plan,
    ) -> Imagined:
        scene_count, rollouts, frames = actions.shape[:3]
        positions = self._planner.size.suffix_positions(frames)
        with torch.inference_mode():
            with watch.stage("prefill"):
                prefix = self._prefix(scenes)
            with watch.stage("imagine"):
                imagined = imagine_group(
                    self.world,
                    self._parts.weights,
                    prefix,
                    self._parts.workspace(
                        scene_count, rollouts + int(expert is not None), positions
                    ),
                    scenes.keys,
                    actions,
                    expert,
                    sampling,
                    progress,
                    width=plan.width,
                    guesses=plan.guesses,
                )
        expert_tokens = imagined.expert_tokens
        return Imagined(
            imagined.tokens.clone(),
            None if expert_tokens is None else expert_tokens.clone(),
            imagined.stats,
        )

    def _judge(
        self,
        scenes: Scenes,
        imagined: Imagined,
        reference: Tensor | None,
        frames: Tensor | None,
        watch: Stopwatch,
        counts: dict[str, int],
    ) -> tuple[Tensor, Tensor]:
        """Stream decode into compare, some scenes at a time: distances float32 [P,N,T] twice."""
        times = imagined.tokens.shape[2]
        step = self._planner.scenes_at_once(times)
        tokens = imagined.tokens
        if imagined.expert_tokens is not None:
            tokens = torch.cat((tokens, imagined.expert_tokens[:, None]), dim=1)
        with watch.stage("decode"):
            features = self._features(scenes)
        with watch.stage("compare"):
            metric = self._parts.metric
        decode_batch, compare_batch = self._planner.decode_batch, self._planner.compare_batch
        parts = []
        for first in range(0, len(scenes), step):
            some = slice(first, first + step)
            group = Stream(
                decoder=self._parts.decoder,
                metric=metric,
                features=features.select(some),
                tokens=tokens[some],
                reference=None if reference is None else reference[some],
                frames=None if frames is None else frames[some],
                decode_batch=decode_batch,
                compare_batch=compare_batch,
                watch=watch,
            )
            parts.append(group.distances())
            counts["frames"] += group.number.numel()
            counts["rendered"] += group.rendered
        return torch.cat([near for near, _ in parts]), torch.cat([far for _, far in parts])

    def _prefix(self, scenes: Scenes) -> Prefix | Prompts:
        self._own(scenes)
        if scenes.prefix is None:
            scenes.prefix = prefill_scenes(self.world, self._parts.weights, scenes, self._attention)
        return scenes.prefix

    def _features(self, scenes: Scenes) -> DecoderFeatures:
        self._own(scenes)
        if scenes.decoder_features is None:
            scenes.decoder_features = scene_features(
                self._parts.decoder, scenes, self._planner.decode_batch
            )
        return scenes.decoder_features

    def _own(self, scenes: Scenes) -> None:
        if scenes.owner is not self._parts.weights:
            scenes.release()  # what another engine computed belongs to its weights
            scenes.owner = self._parts.weights
        self._filled.add(scenes)

    def _new_kept_frames(self, imagined: Imagined, wanted: bool) -> Tensor | None:
        if not wanted:
            return None
        scenes, rollouts, times, _ = imagined.tokens.shape
        members = rollouts + int(imagined.expert_tokens is not None)
        size = self.world.tokenizer.config.resolution
        return new_frames(scenes, members, times, size, self.device)

    def _stats(
        self,
        watch: Stopwatch,
        counts: dict[str, int],
        plan: Plan,
        generated: Sequence[dict[str, Any]],
        expert: bool,
    ) -> dict[str, Any]:
        seconds, draws = dict(watch.seconds), len(generated)
        rows = plan.scenes * (plan.rollouts + int(expert))
        guesses: dict[str, tuple[int, int]] = {}
        for one in generated:
            for source, (right, tried) in one["guesses"].items():
                before = guesses.get(source, (0, 0))
                guesses[source] = (before[0] + right, before[1] + tried)
        return {
            "backend": self.backend,
            "kernel_path": plan.kernel_path,
            "seconds": {**seconds, "total": sum(seconds.values())},
            "capture_seconds": self.capture_seconds,
            "width": plan.width,
            "passes": sum(one["passes"] for one in generated),
            "tokens": draws * rows * plan.frames * self.world.frame_tokens,
            "tokens_per_pass": sum(one["accepted_per_pass"] for one in generated) / draws,
            "wasted_tokens": sum(one["wasted_tokens"] for one in generated),
            "guesses": guesses,
            "frames": counts["frames"],
            "frames_rendered": counts["rendered"],
            "frames_deduplicated": counts["frames"] - counts["rendered"],
            "peak_bytes": self._planner.peak_bytes(plan),
            "planned_bytes": plan.total,
        }


def _check_times(
    times: Sequence[int] | None, frames: int, keep: Sequence[Keep]
) -> list[int] | None:
    if times is None:
        return None
    chosen = list(times)
    if not chosen or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < frames:
        raise ConfigError(
            f"times = {chosen}: expected increasing frame numbers within 0..{frames - 1}"
        )
    if "frames" in keep:
        raise ConfigError("rollout: keep=('frames',) keeps all frames; leave times out")
    return chosen
