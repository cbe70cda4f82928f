"""RolloutEngine: encode > imagine > decode > compare, and all four as `rollout`."""

import copy
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

from vlarft.engine import plan as planning
from vlarft.engine.accelerated import PairMetric
from vlarft.engine.checks import check_shape, check_tokens
from vlarft.engine.compare import (
    Distances,
    Embedder,
    check_comparable,
    check_metric,
    check_reference,
    compare_frames,
    load_metric,
    runs_natively,
)
from vlarft.engine.decode import Decoder, decode_tokens, new_frames, scene_features
from vlarft.engine.encode import FrameEncoder, check_frames, encode_frames
from vlarft.engine.imagine import Imagined, check_actions, imagine_group, prefill_scenes
from vlarft.engine.native import Generator, Prompts
from vlarft.engine.native_decoder import NativeDecoder
from vlarft.engine.native_encoder import NativeEncoder
from vlarft.engine.native_metric import NativeLPIPS
from vlarft.engine.plan import Plan
from vlarft.engine.resolve import (
    resolve_backend,
    resolve_cache_dtype,
    resolve_device,
    resolve_dtype,
)
from vlarft.engine.sampling import Sampling
from vlarft.engine.scenes import Scenes, scene_keys
from vlarft.engine.speculate import SOURCES, Shape, Speculation
from vlarft.engine.stats import Stopwatch, nvtx_range, peak_resident_bytes, resident_bytes
from vlarft.engine.stream import Stream
from vlarft.engine.team import Team
from vlarft.errors import CheckpointError, ConfigError, ShapeError
from vlarft.models.lpips import LPIPS
from vlarft.models.tokenizer import DecoderFeatures, Tokenizer
from vlarft.models.world_model import WorldModel
from vlarft.reference.attention import causal_attention
from vlarft.reference.compare import Metric
from vlarft.reference.imagine import Prefix, Suffix, Weights, load_weights

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
        self._outside = resident_bytes() - sum(
            p.nbytes for p in world.transformer.parameters() if p.device.type == "cpu"
        )
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype)
        self.cache_dtype = resolve_cache_dtype(cache_dtype)
        self.backend, reason = resolve_backend(
            backend, self.device, attention, world.transformer.config
        )
        check_metric(metric)
        self.metric = metric if isinstance(metric, str) else type(metric).__name__
        self._metric_source, self._metric_file = (
            metric,
            None if metric_file is None else str(metric_file),
        )
        self._metric: Embedder | None = None
        self._limit = None if memory_limit is None else planning.parse_bytes(memory_limit)
        self._attention = causal_attention(attention, self.device, self.dtype)
        longest = world.sequence_length(world.layout.frames)
        self._weights: Weights | Generator
        if self.backend == "native":
            self._weights = Generator(
                world.transformer,
                world.frame_codes,
                longest,
                self.dtype,
                self.device,
                self.cache_dtype,
            )
        else:
            self._weights = load_weights(
                world.transformer,
                world.frame_codes,
                longest,
                self.device,
                self.dtype,
                self.cache_dtype,
            )
        tokenizer = _own_tokenizer(world.tokenizer, self.device, torch.float32)
        self._plain_decoder = (
            tokenizer
            if self.dtype == torch.float32
            else _own_tokenizer(world.tokenizer, self.device, self.dtype)
        )
        self._team = Team()
        self._encoder: FrameEncoder = tokenizer
        self._decoder: Decoder = self._plain_decoder
        if self.backend == "native":
            features = self._plain_decoder.decoder_features
            if self.device.type == "cuda":
                # Imported where it is used: it imports Triton.
                from vlarft.engine.gpu_decoder import GpuDecoder

                self._decoder = GpuDecoder(tokenizer, self.dtype, features)
            else:
                self._encoder = NativeEncoder(tokenizer, self._team)
                self._decoder = NativeDecoder(tokenizer, self.dtype, features, self._team)
        self.world = WorldModel(tokenizer, world.transformer, world.layout)
        self._suffix: tuple[tuple[int, int, int], Suffix] | None = None
        self._filled: weakref.WeakSet[Scenes] = weakref.WeakSet()
        self._rates: dict[str, float] = {}  # of the last rollout, seconds a row and frame
        self._size = self._footprint()
        self._speculation = (
            Speculation(self._weights.rates, self._size.suffix_row, self._weights.scenes_at_once)
            if isinstance(self._weights, Generator)
            else None
        )
        if backend == "auto":
            why = f" ({reason})" if reason else ""
            log.info("engine: %s, %s on %s%s", self._kernel_path, dtype, self.device, why)

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
        batch = planning.batch_size(self._size.encode_frame, self.device.type, self.memory_limit)
        with torch.inference_mode():
            context, first = encode_frames(self._encoder, pixels, batch, self.device)
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
        plan = self._check_plan(
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
                self._decoder, features, codes.flatten(1, 2), self._decode_batch, out.flatten(1, 2)
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
        groups = planning.scenes_at_once(self._size, frames.shape[2], self.memory_limit)
        with torch.inference_mode():
            metric = self._loaded_metric()
            near, far = compare_frames(metric, frames, reference, groups, self._compare_batch)
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
        plan = self._check_plan(
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
        return self._check_plan(scenes, rollouts, frames, expert, "frames" in keep, speculate)

    def release(self) -> None:
        """Give cached memory back: suffix caches, buffers, metric, and what scenes hold."""
        self._suffix = None
        if isinstance(self._weights, Generator):
            self._weights.release()
        self._metric = None
        if not isinstance(self._decoder, Tokenizer):
            self._decoder.release()
        self._team.release()
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
        return self._weights.capture_seconds if isinstance(self._weights, Generator) else 0.0

    @property
    def memory_limit(self) -> int:
        """Bytes that the engine may hold, its weights included."""
        if self._limit is not None:
            return self._limit
        return planning.free_memory(self.device) + self._size.weights + self._held()

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
        with torch.inference_mode():
            with watch.stage("prefill"):
                prefix = self._prefix(scenes)
            with watch.stage("imagine"):
                imagined = imagine_group(
                    self.world,
                    self._weights,
                    prefix,
                    self._workspace(scene_count, rollouts + int(expert is not None), frames),
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
        step = planning.scenes_at_once(self._size, times, self.memory_limit)
        tokens = imagined.tokens
        if imagined.expert_tokens is not None:
            tokens = torch.cat((tokens, imagined.expert_tokens[:, None]), dim=1)
        with watch.stage("decode"):
            features = self._features(scenes)
        with watch.stage("compare"):
            metric = self._loaded_metric()
        parts = []
        for first in range(0, len(scenes), step):
            some = slice(first, first + step)
            group = Stream(
                decoder=self._decoder,
                metric=metric,
                features=features.select(some),
                tokens=tokens[some],
                reference=None if reference is None else reference[some],
                frames=None if frames is None else frames[some],
                decode_batch=self._decode_batch,
                compare_batch=self._compare_batch,
                watch=watch,
            )
            parts.append(group.distances())
            counts["frames"] += group.number.numel()
            counts["rendered"] += group.rendered
        return torch.cat([near for near, _ in parts]), torch.cat([far for _, far in parts])

    def _prefix(self, scenes: Scenes) -> Prefix | Prompts:
        self._own(scenes)
        if scenes.prefix is None:
            scenes.prefix = prefill_scenes(self.world, self._weights, scenes, self._attention)
        return scenes.prefix

    def _features(self, scenes: Scenes) -> DecoderFeatures:
        self._own(scenes)
        if scenes.decoder_features is None:
            scenes.decoder_features = scene_features(self._decoder, scenes, self._decode_batch)
        return scenes.decoder_features

    def _own(self, scenes: Scenes) -> None:
        if scenes.owner is not self._weights:
            scenes.release()  # what another engine computed belongs to its weights
            scenes.owner = self._weights
        self._filled.add(scenes)

    def _workspace(self, scenes: int, members: int, frames: int) -> Suffix | None:
        if isinstance(self._weights, Generator):
            return None
        shape = (scenes, members, frames)
        if self._suffix is None or self._suffix[0] != shape:
            self._suffix = None  # freed before the next one is allocated
            positions = self._size.suffix_positions(frames)
            self._suffix = (shape, Suffix(self._weights, scenes, members, positions))
        return self._suffix[1]

    def _loaded_metric(self) -> Embedder:
        if self._metric is None:
            accelerate = self._accelerate if self.backend == "native" else None
            self._metric = load_metric(
                self._metric_source,
                self._metric_file,
                self.device,
                self.world.tokenizer,
                accelerate,
            )
        return self._metric

    def _accelerate(self, lpips: LPIPS) -> PairMetric:
        if self.device.type == "cuda":
            from vlarft.engine.gpu_metric import GpuLPIPS  # imports Triton

            return GpuLPIPS(lpips, self.dtype)
        return NativeLPIPS(lpips, self._team)

    def _new_kept_frames(self, imagined: Imagined, wanted: bool) -> Tensor | None:
        if not wanted:
            return None
        scenes, rollouts, times, _ = imagined.tokens.shape
        members = rollouts + int(imagined.expert_tokens is not None)
        size = self.world.tokenizer.config.resolution
        return new_frames(scenes, members, times, size, self.device)

    @property
    def _decode_batch(self) -> int:
        return planning.batch_size(self._size.decode_frame, self.device.type, self.memory_limit)

    @property
    def _compare_batch(self) -> int:
        return planning.batch_size(self._size.metric_work, self.device.type, self.memory_limit)

    @property
    def _kernel_path(self) -> str:
        if isinstance(self._weights, Generator):
            path = f"native: {self._weights.kernels} kernels"
            if not isinstance(self._decoder, Tokenizer):
                path += f", {self._decoder.kernels} convolutions in decode"
            if runs_natively(self._metric_source):
                path += " and compare"
            return path
        return "reference: plain PyTorch"

    @property
    def _narrow_cache(self) -> bool:
        """Whether keys and values are stored in `cache_dtype`, not only rounded to it."""
        on_gpu = self.backend == "native" and self.device.type == "cuda"
        return self.cache_dtype is not None and on_gpu

    def _held(self) -> int:
        if isinstance(self._weights, Generator):
            return self._weights.held_bytes
        if self._suffix is None:
            return 0
        suffix = self._suffix[1]
        return suffix.keys.nbytes + suffix.values.nbytes

    def _shape(self, scenes: int, members: int, frames: int) -> Shape:
        size = self._size
        return Shape(scenes, members, size.prompt, frames, size.action_dim, size.frame_tokens)

    def _check_plan(
        self, scenes: int, rollouts: int, frames: int, expert: bool, kept: bool, speculate: str
    ) -> Plan:
        limit = self.memory_limit
        shape = self._shape(scenes, rollouts + int(expert), frames)
        width = 1
        guesses: tuple[str, ...] = ()
        if self._speculation is not None:
            width, guesses = self._speculation.choose(shape, speculate)

        def purposes(p: int, n: int) -> tuple[dict[str, int], int]:
            """Bytes of a rollout by purpose, and the work of imagining alone."""
            need = planning.bytes_by_purpose(self._size, p, n, frames, expert, kept, limit)
            some = self._shape(p, n + int(expert), frames)
            if not isinstance(self._weights, Generator):
                return need, self._size.imagine_work(some.rows, frames)
            own = self._weights.plan(some, width=width, guesses=guesses)
            imagining = own["work"]
            judged = planning.judge_work(self._size, p, some.rows, frames, limit)
            own["work"] += judged  # its buffers stay while frames are decoded
            need.update({k: v for k, v in own.items() if k != "weights"})
            return need, imagining

        planning.check_fits(lambda p, n: sum(purposes(p, n)[0].values()), scenes, rollouts, limit)
        need, imagining = purposes(scenes, rollouts)
        imagine = imagining + sum(need[name] for name in planning.KEPT_WHILE_IMAGINING)
        dtype = str(self.dtype).removeprefix("torch.")
        cache = "two-level cache"
        if self.cache_dtype is not None:
            how = "in" if self._narrow_cache else "rounded to"
            cache += f" {how} {str(self.cache_dtype).removeprefix('torch.')}"
        path = f"{self._kernel_path}, {cache}, {dtype} on {self.device}"
        return Plan(
            scenes=scenes,
            rollouts=rollouts,
            frames=frames,
            bytes=need,
            imagine_bytes=imagine,
            limit=limit,
            kernel_path=path,
            seconds=self._predicted(shape, width),
            width=width,
            guesses=guesses,
        )

    def _predicted(self, shape: Shape, width: int) -> dict[str, float]:
        seconds = {stage: rate * shape.rows * shape.frames for stage, rate in self._rates.items()}
        if self._speculation is not None:
            seconds["imagine"] = self._speculation.seconds(shape, width)
        return seconds

    def _stats(
        self,
        watch: Stopwatch,
        counts: dict[str, int],
        plan: Plan,
        generated: Sequence[dict[str, Any]],
        expert: bool,
    ) -> dict[str, Any]:
        shape = self._shape(plan.scenes, plan.rollouts + int(expert), plan.frames)
        draws = len(generated)
        seconds = dict(watch.seconds)
        self._rates = {
            stage: seconds[stage] / (draws * shape.rows * plan.frames)
            for stage in ("imagine", "decode", "compare")
        }
        if self._speculation is not None:
            self._speculation.learn(shape, seconds["imagine"] / draws, generated[-1])
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            if isinstance(self._weights, Generator):  # its memory is not torch's
                peak += self._weights.nbytes + self._weights.held_bytes
                peak += plan.bytes["prompt keys and values"]
        else:
            peak = peak_resident_bytes() - self._outside
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
            "tokens": draws * shape.rows * plan.frames * self.world.frame_tokens,
            "tokens_per_pass": sum(one["accepted_per_pass"] for one in generated) / draws,
            "wasted_tokens": sum(one["wasted_tokens"] for one in generated),
            "guesses": guesses,
            "frames": counts["frames"],
            "frames_rendered": counts["rendered"],
            "frames_deduplicated": counts["frames"] - counts["rendered"],
            "peak_bytes": int(peak),
            "planned_bytes": plan.total,
        }

    def _footprint(self) -> planning.Footprint:
        config, tokenizer = self.world.transformer.config, self.world.tokenizer.config
        held: list[Tensor] = list(self._plain_decoder.parameters())
        decoder = None if isinstance(self._decoder, Tokenizer) else self._decoder
        own = 0 if decoder is None else decoder.nbytes
        own += self._encoder.nbytes if isinstance(self._encoder, NativeEncoder) else 0
        native = self.backend == "native" and runs_natively(self._metric_source)
        if isinstance(self._weights, Generator):
            own += self._weights.nbytes
        else:
            held += self._weights.tensors
        if self._plain_decoder is not self.world.tokenizer:
            held += list(self.world.tokenizer.parameters())
        held += [p for p in self.world.transformer.parameters() if p.device == self.device]
        return planning.Footprint(
            weights=own + sum(t.nbytes for t in held),
            metric_weights=planning.metric_bytes(self.metric, native),
            element=self.dtype.itemsize,
            cache_element=1 if self._narrow_cache else self.dtype.itemsize,
            layers=int(config.num_hidden_layers),
            heads=self._weights.heads,
            kv_heads=self._weights.kv_heads,
            head_dim=self._weights.head_dim,
            hidden=int(config.hidden_size),
            intermediate=int(config.intermediate_size),
            codes=self.world.frame_codes,
            prompt=self.world.prompt_length,
            frame_tokens=self.world.frame_tokens,
            action_dim=self.world.layout.action_dim,
            resolution=tokenizer.resolution,
            latent=tokenizer.latent_size,
            widths=tuple(tokenizer.block_out_channels),
            metric=self.metric,
            device=self.device.type,
            canvas=0 if decoder is None else decoder.work_bytes,
        )


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


def _own_tokenizer(tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype) -> Tokenizer:
    own = copy.deepcopy(tokenizer).eval().requires_grad_(False)
    own.to(device, dtype)
    own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return own
