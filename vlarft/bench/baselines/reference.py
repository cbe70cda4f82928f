"""The reference back end as a baseline of every stage: the same calls on another engine.

Of `imagine` it is called `torch2`: our two-level cache in plain torch, the honest measure of what
native code adds, because it has every idea and none of the kernels.
"""

from collections.abc import Callable
from dataclasses import replace

from vlarft.bench.cases import Material
from vlarft.bench.measure import Context, Prepared
from vlarft.bench.subjects import STAGE_SUBJECTS, build_engine


def _build(stage: str) -> Callable[[Context], Prepared]:
    def build(context: Context) -> Prepared:
        engine = build_engine(context.material, context.options, backend="reference")
        STAGE_SUBJECTS[stage](engine, _one_frame(context.material)).run()  # warm-up
        return Prepared(STAGE_SUBJECTS[stage](engine, context.material))

    return build


def _one_frame(material: Material) -> Material:
    return replace(
        material,
        case=replace(material.case, frames=1),
        actions=material.actions[:, :, :1],
        expert=material.expert[:, :1],
    )


imagine = _build("imagine")
prefill = _build("prefill")
encode = _build("encode")
decode = _build("decode")
compare = _build("compare")
judge = _build("judge")
rollout = _build("rollout")
