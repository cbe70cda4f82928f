"""Baselines of `rollout`: their encoding, imagination, decoding and comparing, one after another.

Imagination has N + 1 rollouts a scene, the expert's actions being the last. Decode and compare get
the engine's tokens, which `check` found equal. Start frames are encoded once a scene in all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlarft.bench.baselines import frames, hf, published
from vlarft.bench.cases import Material, with_expert
from vlarft.bench.clock import now
from vlarft.bench.measure import Context, Prepared, Run, Subject
from vlarft.reference.encode import encode


@dataclass(frozen=True)
class Whole:
    """Encode, imagine and judge by other subjects.

    Attributes:
        material: the case.
        imagine: rollouts and experts.
        judge: decode and compare.
    """

    material: Material
    imagine: Subject
    judge: Subject

    def run(self) -> Run:
        """Measure once."""
        with torch.inference_mode():
            start = now()
            for image in self.material.images.split(1):
                encode(self.material.world.tokenizer, image)
            encoding = now() - start
        imagined, judged = self.imagine.run(), self.judge.run()
        parts = {
            "encode": encoding,
            "prefill": imagined.parts["prefill"],
            "imagine": imagined.parts["generate"],
            "decode and compare": judged.seconds,
        }
        return Run(
            encoding + imagined.seconds + judged.seconds,
            (imagined.output, judged.output),
            parts,
            imagined.sampled or judged.sampled,
        )


def _build(
    imagine: Callable[[Context], Prepared], judge: Callable[[Context, Tensor], Prepared]
) -> Callable[[Context], Prepared]:
    def build(context: Context) -> Prepared:
        tokens = context.output[0]  # of the rollouts and, last, the expert
        grown = replace(context, material=with_expert(context.material), output=tokens, memo={})
        generation = imagine(grown)
        judged = judge(context, tokens)
        subject = Whole(context.material, generation.subject, judged.subject)
        return Prepared(
            subject,
            generation.compile_seconds + judged.compile_seconds,
            {**generation.notes, **judged.notes},
        )

    return build


hf_diffusers_lpips = _build(hf.build, frames.judge_diffusers_lpips)
published_whole = _build(published.build, frames.judge_published)
