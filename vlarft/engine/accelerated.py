"""What a back end with code of its own offers to the stages, on any device."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from vlarft.models.tokenizer import DecoderFeatures


class Renderer(Protocol):
    """A tokenizer's decoder, packed for a device."""

    @property
    def kernels(self) -> str:
        """Kernels that run."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and of buffers that are kept between calls."""
        ...

    @property
    def work_bytes(self) -> int:
        """Bytes that it works in, whatever the number of frames; 0: they grow with the frames."""
        ...

    def decoder_features(self, context: Tensor) -> DecoderFeatures:
        """What depends on the scene only, of context tokens [P,K0]."""
        ...

    def decode(self, features: DecoderFeatures, scene: Tensor, tokens: Tensor) -> Tensor:
        """Render frames; see `vlarft.reference.decode.decode`."""
        ...

    def release(self) -> None:
        """Drop the buffers; they are made again when needed."""
        ...


@runtime_checkable
class PairMetric(Protocol):
    """A perceptual metric that compares pairs without copies of their feature maps."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images [B,3,H,W] in [0, 1]."""
        ...

    def pairs(
        self,
        images: tuple[Tensor, list[Tensor]],
        reference: tuple[Tensor, list[Tensor]],
        image: Tensor,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """L1 and distance, float32 [B]; see `vlarft.engine.compare.pair_distances`."""
        ...

    def distances(
        self,
        pixels: Tensor,
        reference: tuple[Tensor, list[Tensor]],
        image: Tensor | None,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `pairs`, of pixels [I,3,H,W] whose feature maps nobody needs afterwards.

        Without `image`, of every frame in turn.
        """
        ...
