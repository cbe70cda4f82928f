"""Decode and compare as one stream: no more than a micro-batch of frames exists at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vlarft.engine.compare import Embedder, embed, frame_distances, pair_distances
from vlarft.engine.decode import Decoder, render
from vlarft.engine.stats import Stopwatch
from vlarft.models.tokenizer import DecoderFeatures
from vlarft.reference.decode import unique_frames


class Stream:
    """Decode and compare of some scenes, whose reference features are held meanwhile.

    Distinct frames are ranked: those of the expert first, as they are decoded first, then the rest.
    Distinct (frame, reference) pairs are compared once, when their frame has been decoded.

    Args:
        decoder: in the engine's dtype.
        metric: perceptual metric.
        features: decoder features of the scenes.
        tokens: int64 [P,M,T,K]; without `reference` the last member is the expert.
        reference: recorded frames float32 [P,T,3,H,W], or None.
        frames: buffer for kept frames, float32 [P,M,T,3,H,W], or None.
        decode_batch: frames rendered at once, at most.
        compare_batch: frames embedded at once, at most.
        watch: receives the seconds of both stages.
    """

    def __init__(
        self,
        decoder: Decoder,
        metric: Embedder,
        features: DecoderFeatures,
        tokens: Tensor,
        reference: Tensor | None,
        frames: Tensor | None,
        decode_batch: int,
        compare_batch: int,
        watch: Stopwatch,
    ) -> None:
        self.decoder, self.decode_batch = decoder, decode_batch
        self.compare_batch = compare_batch
        self.metric, self.features, self.watch, self.frames = metric, features, watch, frames
        self.shape = tokens.shape[:3]  # scenes, members (the expert last, if any), times
        scenes, members, times = self.shape
        self.scene, self.codes, number = unique_frames(tokens.flatten(1, 2))
        self.rendered = len(self.scene)
        number = number.view(scenes, members, times)
        # Reference frames and where each (scene, time) finds its own among them.
        self.recorded = reference
        if reference is None:
            self.leading, self.target = number[:, -1].unique(return_inverse=True)
        else:
            self.leading = number.new_empty(0)
            self.target = torch.arange(scenes * times, device=tokens.device).view(scenes, times)
        ranks = torch.ones(self.rendered, dtype=torch.bool, device=tokens.device)
        ranks[self.leading] = False
        order = torch.cat((self.leading, ranks.nonzero()[:, 0]))
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        self.order, self.number = order, rank[number]  # [scenes, members, times] in ranks

    def distances(self) -> tuple[Tensor, Tensor]:
        """Distances float32 [scenes, N, times] of every rollout; fills the kept frames."""
        scenes, members, times = self.shape
        rollouts = members if self.recorded is not None else members - 1
        reference = self._reference()
        references = len(reference[0])
        pairs = self.number[:, :rollouts] * references + self.target[:, None]
        distinct, inverse = pairs.unique(return_inverse=True)
        image, target = distinct // references, distinct % references
        near = torch.empty(len(distinct), device=distinct.device)
        far = torch.empty_like(near)
        done, at = 0, 0
        counts = torch.bincount(image, minlength=self.rendered).tolist()
        for pixels, maps in self._images(reference):
            some = slice(at, at + sum(counts[done : done + len(pixels)]))
            if some.stop > some.start:
                with self.watch.stage("compare"):
                    which = (image[some] - done, target[some], self.compare_batch)
                    if maps is None:
                        found = frame_distances(self.metric, pixels, reference, *which)
                    else:
                        found = pair_distances(self.metric, (pixels, maps), reference, *which)
                    near[some], far[some] = found
            self._keep(pixels, done)
            done, at = done + len(pixels), some.stop
        shape = (scenes, rollouts, times)
        return near[inverse].view(shape), far[inverse].view(shape)

    def _reference(self) -> tuple[Tensor, list[Tensor]]:
        if self.recorded is not None:
            pixels = self.recorded.flatten(0, 1)
        else:
            with self.watch.stage("decode"):
                pixels = torch.cat(list(self._render(self.leading)))
        with self.watch.stage("compare"):
            return pixels, embed(self.metric, pixels, self.compare_batch)

    def _images(
        self, reference: tuple[Tensor, list[Tensor]]
    ) -> Iterator[tuple[Tensor, list[Tensor] | None]]:
        """Frames in rank order, with their feature maps where these exist already."""
        if len(self.leading):
            yield reference
        numbers = self.order[len(self.leading) :]
        if not len(numbers):  # every rollout's frame is one of the expert's
            return
        rest = self._render(numbers)
        while True:
            with self.watch.stage("decode"):
                pixels = next(rest, None)
            if pixels is None:
                return
            yield pixels, None

    def _render(self, numbers: Tensor) -> Iterator[Tensor]:
        batch = min(self.decode_batch, self.compare_batch)
        return render(self.decoder, self.features, self.scene[numbers], self.codes[numbers], batch)

    def _keep(self, pixels: Tensor, done: int) -> None:
        if self.frames is None:
            return
        numbers = self.number.flatten()
        here = ((numbers >= done) & (numbers < done + len(pixels))).nonzero()[:, 0]
        self.frames.flatten(0, 2)[here] = pixels[numbers[here] - done]
