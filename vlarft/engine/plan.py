"""What a request would take, and refusal of what does not fit, before any work starts."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vlarft.errors import ConfigError, PlanError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SHARE_OF_FREE = 0.9  # of the memory that is free, when no limit was given
# The native LPIPS holds the feature maps of so many frames at once: enough for a caller of several
# threads, and of small frames as many as share one way of the weights through the caches.
_FEWEST_TOGETHER = 4
_MAPS_BYTES = 32 << 20
_BATCH_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}  # activations of one micro-batch
_LIMIT_SHARE = 8  # ... and at most this part of the memory limit
KEPT_WHILE_IMAGINING = (
    "weights",
    "prompt keys and values",
    "suffix keys and values",
    "tokens",
)
# Floats a pixel that the metric's taps keep, and that its widest layers hold at once.
_TAPS = {"lpips-alex": 12, "lpips-squeeze": 40, "lpips-vgg": 122}
_METRIC_WORK = {"lpips-alex": 24, "lpips-squeeze": 100, "lpips-vgg": 256}
_METRIC_BYTES = {"lpips-alex": 10 << 20, "lpips-squeeze": 3 << 20, "lpips-vgg": 59 << 20}
# ... with weights transformed for the native convolutions.
_NATIVE_METRIC_BYTES = {"lpips-alex": 36 << 20, "lpips-squeeze": 3 << 20, "lpips-vgg": 225 << 20}


@dataclass(frozen=True)
class Plan:
    """What a rollout takes.

    Attributes:
        scenes: P.
        rollouts: N.
        frames: T.
        bytes: peak bytes of a rollout by purpose; stages that follow each other share `work`.
        imagine_bytes: peak bytes of prefill and imagine alone: no metric, no frames.
        limit: bytes that may be used.
        kernel_path: which code runs, for people.
        seconds: predicted by stage, for the stages whose rates are known: "imagine" from timed
            passes (native), everything from this engine's last rollout.
        width: W, positions that a row may settle in one pass; 1 = no speculation.
        guesses: sources of the guesses, in order of trust; empty when W = 1.
    """

    scenes: int
    rollouts: int
    frames: int
    bytes: Mapping[str, int]
    imagine_bytes: int
    limit: int
    kernel_path: str
    seconds: Mapping[str, float]
    width: int = 1
    guesses: tuple[str, ...] = ()

    @property
    def predicted_seconds(self) -> float | None:
        """Of imagine, decode and compare together; None until all of them are known."""
        stages = ("imagine", "decode", "compare")
        if any(stage not in self.seconds for stage in stages):
            return None
        return sum(self.seconds[stage] for stage in stages)

    @property
    def total(self) -> int:
        """Peak bytes."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Footprint:
    """Sizes of a world model, a metric and a device, from which every plan follows."""

    weights: int  # bytes of everything loaded but the metric
    metric_weights: int
    element: int  # bytes of one number in the engine's dtype
    cache_element: int  # bytes of one entry of a key or value
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    codes: int
    prompt: int  # S
    frame_tokens: int  # K
    action_dim: int  # A
    resolution: int
    latent: int  # edge of the tokenizer's latent
    widths: tuple[int, ...]  # block_out_channels
    metric: str
    device: str
    canvas: int = 0  # bytes that the native decoder works in, whatever the batch; 0: torch decodes

    @property
    def decode_frame(self) -> int:
        """Bytes that rendering one frame holds at once."""
        widest = max(
            width * (self.resolution >> max(0, level - 1)) ** 2
            for level, width in enumerate(self.widths)
        )  # the upsampler of level i writes that level's width at the next finer size
        return int(4.6 * widest * self.element) + 2 * self.scene_features

    @property
    def encode_frame(self) -> int:
        """Bytes that encoding one frame holds at once (float32)."""
        return 5 * 4 * max(w * (self.resolution >> i) ** 2 for i, w in enumerate(self.widths))

    @property
    def scene_features(self) -> int:
        """Bytes of one scene's decoder features."""
        return 2 * self.latent**2 * self.widths[-1] * self.element

    @property
    def metric_frame(self) -> int:
        """Bytes of one frame's pixels and feature maps (float32)."""
        if self.metric == "tokenizer-features":
            return 4 * self.resolution**2 * 3 + self._encoder_levels
        return 4 * self.resolution**2 * (3 + _TAPS.get(self.metric, _TAPS["lpips-vgg"]))

    @property
    def _encoder_levels(self) -> int:
        """Bytes of the outputs of the tokenizer's encoder, level by level (float32)."""
        last = len(self.widths) - 1
        sizes = [self.resolution >> min(i + 1, last) for i in range(last + 1)]
        return 4 * sum(w * size**2 for w, size in zip(self.widths, sizes, strict=True))

    @property
    def metric_work(self) -> int:
        """Bytes that comparing one frame holds at once (float32)."""
        if self.metric == "tokenizer-features":
            return self.encode_frame + 3 * self.metric_frame
        work = _METRIC_WORK.get(self.metric, _METRIC_WORK["lpips-vgg"])
        # torch holds feature maps, their normalised copies and squared differences; the native
        # comparison reads the maps alone.
        held = 1 if self.canvas else 3
        return 4 * self.resolution**2 * work + held * self.metric_frame

    @property
    def prefix_scene(self) -> int:
        """Bytes of one scene's prompt keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.prompt * self.cache_element

    def suffix_positions(self, frames: int) -> int:
        """Longest suffix: the very last token is never fed back."""
        return frames * (self.action_dim + self.frame_tokens) - 1

    def suffix_row(self, frames: int) -> int:
        """Bytes of one member's own keys and values."""
        positions = self.suffix_positions(frames)
        return 2 * self.layers * self.kv_heads * self.head_dim * positions * self.cache_element

    def imagine_work(self, rows: int, frames: int) -> int:
        """Bytes of one pass: activations, scores, logits, sampling and noise."""
        width = self.action_dim + 1
        activations = width * (4 * self.hidden + 3 * self.intermediate) * self.element
        keys = self.prompt + self.suffix_positions(frames)
        scores = width * self.heads * keys * (2 * self.element + 4)
        sampling = self.codes * 64
        return rows * (activations + scores + sampling) + (96 << 20)


def batch_size(frame_bytes: int, device: str, limit: int) -> int:
    """Frames of one micro-batch: enough to fill the machine, small against the limit."""
    target = min(_BATCH_BYTES.get(device, _BATCH_BYTES["cpu"]), limit // _LIMIT_SHARE)
    return max(1, target // frame_bytes)


def bytes_by_purpose(
    size: Footprint,
    scenes: int,
    rollouts: int,
    frames: int,
    expert: bool,
    frames_kept: bool,
    limit: int,
) -> dict[str, int]:
    """Peak bytes of a rollout by purpose."""
    rows = scenes * (rollouts + int(expert))
    pixels = 12 * size.resolution**2
    return {
        "weights": size.weights,
        "metric": size.metric_weights,
        "prompt keys and values": scenes * size.prefix_scene,
        "suffix keys and values": rows * size.suffix_row(frames),
        "decoder features": scenes * size.scene_features,
        "tokens": 3 * rows * frames * size.frame_tokens * 8,
        "kept frames": rows * frames * pixels if frames_kept else 0,
        "work": max(size.imagine_work(rows, frames), judge_work(size, scenes, rows, frames, limit)),
    }


def frames_together(frame_bytes: int) -> int:
    """Frames whose feature maps, of `frame_bytes` a frame, the native LPIPS holds at once."""
    return max(_FEWEST_TOGETHER, _MAPS_BYTES // frame_bytes)


def judge_work(size: Footprint, scenes: int, rows: int, frames: int, limit: int) -> int:
    """Peak bytes of decode and compare, which take turns, and of the reference's features.

    Args:
        size: sizes of the engine.
        scenes: P.
        rows: members of all groups together.
        frames: T.
        limit: bytes that the engine may hold.
    """
    compare = batch_size(size.metric_work, size.device, limit)
    decode = min(batch_size(size.decode_frame, size.device, limit), compare, rows * frames)
    compare = min(compare, decode)  # what one micro-batch rendered
    if size.canvas and size.metric.startswith("lpips"):
        compare = min(compare, frames_together(size.metric_frame))  # it keeps no more maps
    pixels = decode * 12 * size.resolution**2
    render = 0 if size.canvas else decode * size.decode_frame
    reference = min(scenes, scenes_at_once(size, frames, limit)) * frames * size.metric_frame
    return max(render, compare * size.metric_work) + size.canvas + pixels + reference


def scenes_at_once(size: Footprint, frames: int, limit: int) -> int:
    """Scenes whose reference features are held at once."""
    return batch_size(frames * size.metric_frame, size.device, limit)


def check_fits(
    total: Callable[[int, int], int], scenes: int, rollouts: int, limit: int, largest: int = 1 << 20
) -> None:
    """Refuse a request that exceeds the limit.

    Args:
        total: peak bytes of (scenes, rollouts), growing with both.
        scenes: P asked for.
        rollouts: N asked for.
        limit: bytes.
        largest: where the search for what fits ends.

    Raises:
        PlanError: naming the largest N or P that fits.
    """
    need = total(scenes, rollouts)
    if need <= limit:
        return
    fits_n = _largest(lambda n: total(scenes, n) <= limit, min(rollouts, largest))
    fits_p = _largest(lambda p: total(p, rollouts) <= limit, min(scenes, largest))
    fits = [f"N <= {fits_n} rollouts with P = {scenes}"] if fits_n else []
    fits += [f"P <= {fits_p} scenes with N = {rollouts}"] if fits_p else []
    advice = (
        f"what fits: {' or '.join(fits)}"
        if fits
        else f"not even one of them fits: P = 1, N = 1 takes {readable(total(1, 1))}"
    )
    raise PlanError(
        f"P = {scenes} scenes, N = {rollouts} rollouts take {readable(need)}, the limit is "
        f"{readable(limit)}; {advice}; split the request or raise memory_limit"
    )


def _largest(fits: Callable[[int], bool], high: int) -> int:
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def parse_bytes(limit: int | str) -> int:
    """`8GiB`, `500 MB` or a number of bytes.

    Raises:
        ConfigError: not a size.
    """
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        return limit
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", str(limit))
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise ConfigError(
            f"memory_limit = {limit!r}; give bytes or a size such as '8GiB' or '500MB'"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def readable(size: int) -> str:
    """A size for people."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size / 2**10:.1f} KiB"


def free_memory(device: torch.device) -> int:
    """Bytes that may be used when no limit was given: most of what is free now."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        meminfo = Path("/proc/meminfo")
        if meminfo.is_file():  # counts reclaimable page cache as free, unlike SC_AVPHYS_PAGES
            found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
            free = int(found[1]) * 1024 if found else free
        group = Path("/sys/fs/cgroup")
        if (group / "memory.max").is_file() and (group / "memory.current").is_file():
            most = (group / "memory.max").read_text().strip()
            if most != "max":
                free = min(free, int(most) - int((group / "memory.current").read_text()))
    return max(0, int(free * _SHARE_OF_FREE))


def metric_bytes(metric: str, native: bool) -> int:
    """Bytes of a metric's weights, known before they are loaded."""
    if metric == "tokenizer-features":
        return 0  # the tokenizer's own
    known = _NATIVE_METRIC_BYTES if native else _METRIC_BYTES
    return known.get(metric, known["lpips-vgg"])
