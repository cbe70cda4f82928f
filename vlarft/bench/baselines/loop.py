"""Token generation with transformers' Llama: the loop that the baselines share.

Rows are the R = P N rollouts; each carries its own copy of its scene's prompt. A pass gives the
model new tokens and a cache and takes the logits of the last one. Everything that is not the
baseline's own work is done before the clock starts: ids, and the addressed noise of all positions.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from vlarft.bench.baselines.kv_store import CACHE, KeyValueStore
from vlarft.bench.baselines.schedule import FrameSchedule, interpolate
from vlarft.bench.clock import now
from vlarft.bench.measure import Context, Run, Samples
from vlarft.reference.noise import gumbel, member_words
from vlarft.reference.sample import sample

FULL_SECONDS = 45.0  # a baseline that would take longer is sampled
_PREFILL_ROWS = 2  # of a sampled prefill; rows are independent, so it is scaled by R / 2
_BORDER_REPEATS = 3  # of each sampled border chunk


@dataclass(frozen=True)
class Inputs:
    """A case, row by row.

    Attributes:
        prompt: int64 [R,S].
        actions: int64 [T,R,A].
        noise: float32 [P,M or 1,T K,C], None when greedy.
        tokens: the engine's tokens, int64 [R,T,K].
        shape: (P, N).
    """

    prompt: Tensor
    actions: Tensor
    noise: Tensor | None
    tokens: Tensor
    shape: tuple[int, int]


@torch.inference_mode()
def inputs(context: Context) -> Inputs:
    """The case's ids and noise, as inference tensors: compiled code tells them from others."""
    material = context.material
    world, case, sampling = material.world, material.case, material.sampling
    prompt = world.prompt_ids(material.context, material.first)
    noise = None
    if sampling.temperature > 0:
        keys = torch.arange(case.scenes, device=prompt.device)
        members = member_words(case.rollouts, False, sampling.noise == "shared", keys.device)
        places = torch.arange(case.frames * world.frame_tokens, device=prompt.device)
        # One position at a time: Philox in int64 needs many times the result's memory.
        parts = [
            gumbel(sampling.seed, keys, members, place, world.frame_codes)
            for place in places.split(1)
        ]
        noise = torch.cat(parts, dim=2)
    return Inputs(
        prompt=prompt.repeat_interleave(case.rollouts, dim=0),
        actions=world.action_ids(material.actions).flatten(0, 1).transpose(0, 1).contiguous(),
        noise=noise,
        tokens=context.output.flatten(0, 1).clone(),
        shape=(case.scenes, case.rollouts),
    )


def schedule_of(context: Context) -> FrameSchedule:
    """The case's passes."""
    world = context.material.world
    return FrameSchedule(
        prompt=world.prompt_length,
        frames=context.material.case.frames,
        frame_tokens=world.frame_tokens,
        action_dim=world.layout.action_dim,
    )


class TokenLoop(ABC):
    """Generation with one model and one kind of cache.

    Args:
        context: the case.
        model: in the dtype that is measured.
    """

    def __init__(self, context: Context, model: LlamaForCausalLM) -> None:
        self.context, self.model = context, model
        self.given: Inputs = context.shared("inputs", lambda: inputs(context))
        self.codes = context.material.world.frame_codes
        self.schedule = schedule_of(context)
        self.rows = context.material.case.trajectories
        self.sampled = False

    # --- what a baseline is -----------------------------------------------------------------

    @abstractmethod
    def fresh(self) -> Any:
        """An empty cache."""

    @abstractmethod
    def at(self, store: KeyValueStore, length: int) -> Any:
        """A cache that holds the first `length` tokens of every row."""

    def forward(self, ids: Tensor, cache: Any) -> Tensor:
        """One pass: logits of the frame codes after the last of ids [R,W], float32 [R,C]."""
        out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        logits: Tensor = out.logits[:, -1, : self.codes].float()
        return logits

    def opening(self, frame: int, tokens: Tensor) -> tuple[Tensor, bool]:
        """Ids of a frame's first pass [R,W], and whether it starts from an empty cache.

        Args:
            frame: 0 .. T-1.
            tokens: those drawn so far, int64 [R,T,K].
        """
        if frame == 0:
            return torch.cat((self.given.prompt, self.given.actions[0]), dim=1), True
        return torch.cat((tokens[:, frame - 1, -1:], self.given.actions[frame]), dim=1), False

    # --- measurements -----------------------------------------------------------------------

    def decide(self) -> None:
        """Warm up, and sample from now on when the whole would take too long."""
        choice = self.context.options.sample
        middle = self.schedule.prompt + self.schedule.suffix // 2
        with torch.inference_mode():
            empty = KeyValueStore.zeros(self.model, self.rows, self.schedule.total)
            seconds = []
            for _ in range(2):
                cache = self.at(empty, middle)
                start = now()
                self.forward(self.given.tokens[:, 0, :1], cache)
                seconds.append(now() - start)
        whole = seconds[-1] * self.schedule.frames * self.schedule.frame_tokens
        self.sampled = choice == "always" or (choice == "auto" and whole > FULL_SECONDS)
        if self.sampled:
            self._store()

    def run(self) -> Run:
        """Measure once, wholly or by samples."""
        with torch.inference_mode():
            return self._samples() if self.sampled else self._whole()

    def _whole(self) -> Run:
        tokens = torch.empty_like(self.given.tokens)
        prefill = 0.0
        cache: Any = None
        start = now()
        for frame in range(self.schedule.frames):
            ids, anew = self.opening(frame, tokens)
            before = now()
            if anew:
                cache = self.fresh()
            logits = self.forward(ids, cache)
            if anew:
                prefill += now() - before
            for position in range(self.schedule.frame_tokens):
                if position:
                    logits = self.forward(tokens[:, frame, position - 1 : position], cache)
                tokens[:, frame, position] = self._pick(logits, frame, position)
        seconds = now() - start
        output = tokens.view(*self.given.shape, *tokens.shape[1:])
        return Run(seconds, output, {"prefill": prefill, "generate": seconds - prefill})

    def _samples(self) -> Run:
        store, schedule, given = self._store(), self.schedule, self.given
        drawn = Samples()
        singles: dict[int, float] = {}
        for frame in schedule.frame_classes():
            times = []
            for position in schedule.sampled_positions():
                cache = self.at(store, schedule.length_before(frame, position))
                ids = given.tokens[:, frame, position - 1 : position]
                start = now()
                chosen = self._pick(self.forward(ids, cache), frame, position)
                times.append(now() - start)
                drawn.tokens[frame, position] = chosen.view(given.shape)
            singles[frame] = sum(times) / len(times)
        fresh: dict[int, float] = {}
        border: dict[int, float] = {}
        for frame in schedule.opening_classes():
            ids, anew = self.opening(frame, given.tokens)
            rows = min(_PREFILL_ROWS, self.rows) if anew else self.rows
            times = []
            for _ in range(1 if anew else _BORDER_REPEATS):
                cache = None if anew else self.at(store, schedule.length_before(frame, 0))
                start = now()
                cache = self.fresh() if anew else cache
                chosen = self._pick(self.forward(ids[:rows], cache), frame, 0)
                times.append(now() - start)
            (fresh if anew else border)[frame] = sum(times) / len(times) * self.rows / rows
            if rows == self.rows:
                drawn.tokens[frame, 0] = chosen.view(given.shape)
        prefill = generate = 0.0
        for frame in range(schedule.frames):
            _, anew = self.opening(frame, given.tokens)
            generate += (schedule.frame_tokens - 1) * interpolate(singles, frame)
            if anew:
                prefill += interpolate(fresh, frame)
            else:
                generate += interpolate(border, frame)
        parts = {"prefill": prefill, "generate": generate}
        return Run(prefill + generate, drawn, parts, sampled=True)

    def _pick(self, logits: Tensor, frame: int, position: int) -> Tensor:
        sampling, noise = self.context.material.sampling, None
        if self.given.noise is not None:
            place = frame * self.schedule.frame_tokens + position
            scenes, rollouts = self.given.shape
            rows = self.given.noise[:, :, place].expand(scenes, rollouts, -1)
            noise = rows.reshape(scenes * rollouts, -1)[: len(logits)]
        return sample(
            logits,
            noise,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )

    def _store(self) -> KeyValueStore:
        def make() -> KeyValueStore:
            return KeyValueStore.of(self.model, self.given.prompt, self._suffix_ids())

        store: KeyValueStore = self.context.shared("store", make)
        return store

    def _suffix_ids(self) -> Tensor:
        """All that follows the prompt but the last token, int64 [R, T (A + K) - 1]."""
        parts = torch.cat((self.given.actions.transpose(0, 1), self.given.tokens), dim=2)
        return parts.flatten(1)[:, :-1]


def model_in(context: Context) -> LlamaForCausalLM:
    """The case's transformer in the dtype that is measured, in evaluation mode."""

    def make() -> Any:
        own: Any = context.material.world.transformer
        if context.options.dtype == torch.float32:
            return own.eval()
        model: Any = LlamaForCausalLM(own.config)
        model.load_state_dict(own.state_dict())
        model = model.to(own.device, context.options.dtype).eval()
        # `to` rounds the rotary frequencies as well, which loading in a dtype does not.
        model.model.rotary_emb = type(model.model.rotary_emb)(own.config).to(own.device)
        return model

    model: LlamaForCausalLM = context.shared("model", make)
    return model
