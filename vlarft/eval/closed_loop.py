"""Who acts in an evaluation episode, and the episode itself.

A picture is drawn only when a policy plans, once an action chunk.
"""

import hashlib
import threading
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from vlarft.checkpoint import weights_fingerprint
from vlarft.data.actions import binarize_gripper
from vlarft.data.libero import PROPRIOCEPTION
from vlarft.libero.scene import STILL, Float32Array, Float64Array, Scene, UInt8Array
from vlarft.models.flow_policy import FlowPolicy
from vlarft.models.policy import Observation

CAMERA = "agentview"
BLIND_GREY = 127  # of every pixel that a blind policy sees
REPLAY_TAIL = 20  # steps that a replay waits after its last action


class Player(Protocol):
    """Acts in one episode."""

    def plan(self, scene: Scene, step: int) -> Float32Array:
        """Actions [T, 7] from step `step` on, raw LIBERO units; empty ends the episode."""
        ...


class Contestant(Protocol):
    """Acts in many episodes.

    Attributes:
        identity: plain values; equal ones mean equal actions.
    """

    identity: dict[str, Any]

    def player(self, task: int, instruction: str) -> Player:
        """For an episode of a task."""
        ...


class PolicyContestant:
    """A policy that executes every action chunk to its end.

    Args:
        policy: read from a folder.
        blind: it sees a grey picture instead of the camera's.
    """

    def __init__(self, policy: FlowPolicy, blind: bool = False) -> None:
        self._policy, self._blind = policy.eval(), blind
        self._lock = threading.Lock()
        self.size = policy.config.encoder.image_size
        self.identity = {
            "policy": policy_fingerprint(policy),
            "picture": "grey" if blind else f"{CAMERA} {self.size} px",
        }

    def player(self, task: int, instruction: str) -> Player:  # noqa: ARG002
        """See `Contestant`."""
        return _PolicyPlayer(self, instruction)

    def act(self, scene: Scene, instruction: str) -> Float32Array:
        """The chunk [T, 7] for what the scene shows now, as a robot gets it."""
        seen = self._grey() if self._blind else scene.draw(CAMERA)[::-1, ::-1]
        values = scene.proprioception()
        state = np.concatenate([values[key] for key, _ in PROPRIOCEPTION])
        observation = Observation(
            torch.from_numpy(np.ascontiguousarray(seen))[None],
            torch.from_numpy(state.astype(np.float32))[None],
            [instruction],
        )
        with self._lock, torch.no_grad():
            actions = binarize_gripper(self._policy.act(observation))[0].clamp(-1, 1)
        return actions.cpu().numpy().astype(np.float32)

    def _grey(self) -> UInt8Array:
        return np.full((self.size, self.size, 3), BLIND_GREY, np.uint8)


@dataclass(frozen=True, slots=True)
class _PolicyPlayer:
    contestant: PolicyContestant
    instruction: str

    def plan(self, scene: Scene, step: int) -> Float32Array:  # noqa: ARG002
        return self.contestant.act(scene, self.instruction)


class ReplayContestant:
    """Repeats one demonstration of each task, whatever the scene looks like.

    Args:
        actions: of each task, float32 [L, 7].
    """

    def __init__(self, actions: dict[int, Float32Array]) -> None:
        self._actions = actions
        content = hashlib.sha256()
        for task, values in sorted(actions.items()):
            content.update(str(task).encode() + np.ascontiguousarray(values).tobytes())
        self.identity = {"replay": content.hexdigest()}

    def player(self, task: int, instruction: str) -> Player:  # noqa: ARG002
        """See `Contestant`."""
        return _ReplayPlayer(np.concatenate([self._actions[task], [STILL] * REPLAY_TAIL]))


@dataclass(frozen=True, slots=True, eq=False)
class _ReplayPlayer:
    actions: Float32Array

    def plan(self, scene: Scene, step: int) -> Float32Array:  # noqa: ARG002
        return self.actions[step:]


def policy_fingerprint(policy: FlowPolicy) -> str:
    """Hash over weights, configuration and statistics of a policy."""
    content = hashlib.sha256(weights_fingerprint(policy).encode())
    content.update(policy.config.model_dump_json().encode())
    content.update(repr(policy.statistics.to_dict()).encode())
    return content.hexdigest()


def play(scene: Scene, state: Float64Array, player: Player, max_steps: int) -> tuple[bool, int]:
    """One episode: whether the task was solved, and the steps taken.

    Args:
        scene: of the task.
        state: to start from.
        player: acts.
        max_steps: most steps.
    """
    scene.start(state)
    steps = 0
    while steps < max_steps:
        actions = player.plan(scene, steps)[: max_steps - steps]
        if not len(actions):
            break
        solved, taken = scene.run(actions)
        steps += taken
        if solved:
            return True, steps
    return False, steps
