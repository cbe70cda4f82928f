"""What an engine computes with: a world model's networks and a metric as a back end runs them."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from vlarft.engine import plan as planning
from vlarft.engine.accelerated import PairMetric
from vlarft.engine.compare import Embedder, check_metric, load_metric, runs_natively
from vlarft.engine.decode import Decoder
from vlarft.engine.encode import FrameEncoder
from vlarft.engine.native import Generator
from vlarft.engine.native_decoder import NativeDecoder
from vlarft.engine.native_encoder import NativeEncoder
from vlarft.engine.native_metric import NativeLPIPS
from vlarft.engine.team import Team
from vlarft.models.lpips import LPIPS
from vlarft.models.tokenizer import Tokenizer
from vlarft.models.world_model import WorldModel
from vlarft.reference.compare import Metric
from vlarft.reference.imagine import Suffix, Weights, load_weights


class Parts:
    """Networks and buffers of one engine; weights are copied once.

    Args:
        source: the world model.
        backend: "native" or "reference".
        device: where everything lives.
        dtype: of the transformer and the decoder.
        cache_dtype: of keys and values, or None.
        metric: its name, or an object.
        metric_file: its weights, when not where `LPIPS.load` looks.

    Attributes:
        world: tokenizer in float32 on the device, the source's transformer, layout.
        weights: what generates tokens.
        encoder: what tokenises.
        decoder: what renders.
        metric_name: "lpips-vgg" and so on, or the object's class.

    Raises:
        ConfigError: unknown metric.
        UnsupportedModelError, BackendError: see `Generator` and `NativeDecoder`.
    """

    def __init__(
        self,
        source: WorldModel,
        backend: str,
        device: torch.device,
        dtype: torch.dtype,
        cache_dtype: torch.dtype | None,
        metric: str | Metric,
        metric_file: str | Path | None,
    ) -> None:
        check_metric(metric)
        self.metric_name = metric if isinstance(metric, str) else type(metric).__name__
        self._native = backend == "native"
        self._device, self._dtype, self._cache_dtype = device, dtype, cache_dtype
        self._metric_source = metric
        self._metric_file = None if metric_file is None else str(metric_file)
        self._metric: Embedder | None = None
        self._suffix: tuple[tuple[int, int, int], Suffix] | None = None
        self._team = Team()
        model, codes = source.transformer, source.frame_codes
        longest = source.sequence_length(source.layout.frames)
        self.weights: Weights | Generator
        if self._native:
            self.weights = Generator(model, codes, longest, dtype, device, cache_dtype)
        else:
            self.weights = load_weights(model, codes, longest, device, dtype, cache_dtype)
        tokenizer = _own_tokenizer(source.tokenizer, device, torch.float32)
        self.world = WorldModel(tokenizer, source.transformer, source.layout)
        plain = tokenizer
        if dtype != torch.float32:
            plain = _own_tokenizer(source.tokenizer, device, dtype)
        self._plain_decoder = plain
        self.encoder: FrameEncoder = tokenizer
        self.decoder: Decoder = plain
        if self._native and device.type == "cuda":
            # Imported where it is used: it imports Triton.
            from vlarft.engine.gpu_decoder import GpuDecoder

            self.decoder = GpuDecoder(tokenizer, dtype, plain.decoder_features)
        elif self._native:
            self.encoder = NativeEncoder(tokenizer, self._team)
            self.decoder = NativeDecoder(tokenizer, dtype, plain.decoder_features, self._team)

    @property
    def kernels(self) -> str:
        """Which code runs, for people."""
        if not isinstance(self.weights, Generator):
            return "reference: plain PyTorch"
        path = f"native: {self.weights.kernels} kernels"
        if not isinstance(self.decoder, Tokenizer):
            path += f", {self.decoder.kernels} convolutions in decode"
        if runs_natively(self._metric_source):
            path += " and compare"
        return path

    @property
    def kernel_path(self) -> str:
        """The same with cache, precision and device."""
        cache = "two-level cache"
        if self._cache_dtype is not None:
            how = "in" if self._narrow_cache else "rounded to"
            cache += f" {how} {_name(self._cache_dtype)}"
        return f"{self.kernels}, {cache}, {_name(self._dtype)} on {self._device}"

    @property
    def capture_seconds(self) -> float:
        """Seconds that a GPU's graphs took to capture so far; 0 on a CPU."""
        return self.weights.capture_seconds if isinstance(self.weights, Generator) else 0.0

    @property
    def held_bytes(self) -> int:
        """Bytes of what is kept between calls for imagining: suffix caches and buffers."""
        if isinstance(self.weights, Generator):
            return self.weights.held_bytes
        if self._suffix is None:
            return 0
        suffix = self._suffix[1]
        return suffix.keys.nbytes + suffix.values.nbytes

    @property
    def metric(self) -> Embedder:
        """The metric; its weights are read when it is first needed.

        Raises:
            CheckpointError: they are missing or damaged; the message says how to get them.
        """
        if self._metric is None:
            self._metric = load_metric(
                self._metric_source,
                self._metric_file,
                self._device,
                self.world.tokenizer,
                self._accelerate if self._native else None,
            )
        return self._metric

    def workspace(self, scenes: int, members: int, positions: int) -> Suffix | None:
        """The reference back end's suffix cache of a shape; the native one keeps its own."""
        if isinstance(self.weights, Generator):
            return None
        shape = (scenes, members, positions)
        if self._suffix is None or self._suffix[0] != shape:
            self._suffix = None  # freed before the next one is allocated
            self._suffix = (shape, Suffix(self.weights, *shape))
        return self._suffix[1]

    def release(self) -> None:
        """Free what comes back when it is needed: suffix caches, buffers, metric, threads."""
        self._suffix = self._metric = None
        if isinstance(self.weights, Generator):
            self.weights.release()
        if not isinstance(self.decoder, Tokenizer):
            self.decoder.release()
        self._team.release()

    def footprint(self) -> planning.Footprint:
        """Sizes from which every plan follows."""
        config, tokenizer = self.world.transformer.config, self.world.tokenizer.config
        held: list[Tensor] = list(self._plain_decoder.parameters())
        decoder = None if isinstance(self.decoder, Tokenizer) else self.decoder
        own = 0 if decoder is None else decoder.nbytes
        own += self.encoder.nbytes if isinstance(self.encoder, NativeEncoder) else 0
        if isinstance(self.weights, Generator):
            own += self.weights.nbytes
        else:
            held += self.weights.tensors
        if self._plain_decoder is not self.world.tokenizer:
            held += list(self.world.tokenizer.parameters())
        held += [p for p in self.world.transformer.parameters() if p.device == self._device]
        native_metric = self._native and runs_natively(self._metric_source)
        return planning.Footprint(
            weights=own + sum(t.nbytes for t in held),
            metric_weights=planning.metric_bytes(self.metric_name, native_metric),
            element=self._dtype.itemsize,
            cache_element=1 if self._narrow_cache else self._dtype.itemsize,
            layers=int(config.num_hidden_layers),
            heads=self.weights.heads,
            kv_heads=self.weights.kv_heads,
            head_dim=self.weights.head_dim,
            hidden=int(config.hidden_size),
            intermediate=int(config.intermediate_size),
            codes=self.world.frame_codes,
            prompt=self.world.prompt_length,
            frame_tokens=self.world.frame_tokens,
            action_dim=self.world.layout.action_dim,
            resolution=tokenizer.resolution,
            latent=tokenizer.latent_size,
            widths=tuple(tokenizer.block_out_channels),
            metric=self.metric_name,
            device=self._device.type,
            canvas=0 if decoder is None else decoder.work_bytes,
        )

    @property
    def _narrow_cache(self) -> bool:
        """Whether keys and values are stored in `cache_dtype`, not only rounded to it."""
        return self._cache_dtype is not None and self._native and self._device.type == "cuda"

    def _accelerate(self, lpips: LPIPS) -> PairMetric:
        if self._device.type == "cuda":
            from vlarft.engine.gpu_metric import GpuLPIPS  # imports Triton

            return GpuLPIPS(lpips, self._dtype)
        return NativeLPIPS(lpips, self._team)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _own_tokenizer(tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype) -> Tokenizer:
    own = copy.deepcopy(tokenizer).eval().requires_grad_(False)
    own.to(device, dtype)
    own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return own
