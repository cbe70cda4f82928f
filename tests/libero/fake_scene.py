"""A pick-and-place world of boxes without a simulator: the arm goes where it is told."""

import numpy as np

from vlarft.errors import SimulatorError

DOWN = np.diag([1.0, -1.0, -1.0])
SIZES = {
    "milk": (0.03, 0.05, 0.12),
    "basket": (0.2, 0.2, 0.12),
    "soup": (0.06, 0.06, 0.08),
    "butter": (0.04, 0.1, 0.04),
}  # m along x, y, z
PLACES = {"milk": (0.0, 0.0), "basket": (0.05, 0.3), "soup": (0.12, -0.1), "butter": (-0.12, 0.1)}
FIRST = {name: 5 + 7 * index for index, name in enumerate(SIZES)}
STATE = 5 + 7 * len(SIZES)  # time, grip position, its turn, then a pose an object


def initial_state(places=PLACES):
    state = np.zeros(STATE)
    state[1:4] = (-0.1, 0, 0.35)
    for name, (x, y) in places.items():
        state[FIRST[name] : FIRST[name] + 7] = (x, y, SIZES[name][2] / 2, 1, 0, 0, 0)
    return state


class FakeScene:
    """`misses` grasps fail, the step `breaks` raises, `topples` says which starts slip."""

    task, language, bddl, env_name = "pick_up_the_milk", "pick up the milk", "milk.bddl", "fake"
    target, goal, objects = "milk", "basket", tuple(SIZES)
    state_size, cameras = STATE, ("agentview", "robot0_eye_in_hand")

    def __init__(
        self, size=16, *, misses=0, breaks=None, topples=lambda _state: False, goal_height=0.12
    ):
        self.sizes = SIZES | {"basket": (0.2, 0.2, goal_height)}
        self.size, self.misses, self.breaks, self.topples = size, misses, breaks, topples
        self.steps = self.drawn = 0
        self.films, self.looks, self.look = [], [], {}
        self.start(initial_state())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def interrupt(self):
        pass

    def initial_states(self):
        return np.stack([initial_state() + 1e-4 * i * (np.arange(STATE) == 5) for i in range(50)])

    def start(self, state):
        self._state, self._held, self._closed = np.array(state, float), None, 0
        if self.topples(self._state):
            self._state[FIRST["soup"]] += 0.05
        return self._solved()

    def state(self):
        return self._state.copy()

    def set_state(self, state):
        self._state = np.array(state, float)

    def entries(self, name):
        return slice(FIRST[name], FIRST[name] + 7)

    def arm(self):
        return slice(1, 5)

    def points(self, name):
        x, y, z, w, _, _, k = self._state[self.entries(name)]
        half = np.array(self.sizes[name]) / 2
        grid = np.array(np.meshgrid(*[np.linspace(-1, 1, 5)] * 3)).reshape(3, -1).T * half
        return grid @ turn(2 * np.arctan2(k, w)).T + (x, y, z)

    def sense(self):
        rotation = turn(self._state[4]) @ DOWN
        return {
            "position": self._state[1:4].copy(),
            "rotation": rotation,
            "closing": rotation @ (0, 1, 0),
            "target": self._state[self.entries("milk")][:3].copy(),
        }

    def step(self, action):
        action = np.asarray(action)
        self.steps += 1
        if self.steps == self.breaks:
            raise SimulatorError("diverged")
        self._state[0] += 0.05
        self._state[1:4] += 0.015 * action[:3]
        self._state[3] = max(self._state[3], 0.01)
        self._state[4] += 0.15 * action[5]
        self._closed = self._closed + 1 if action[6] > 0 else 0
        target = self._state[self.entries("milk")][:3]
        if self._closed == 4 and np.abs(target - self._state[1:4]).max() < 0.035:
            self._held = target - self._state[1:4] if not self.misses else None
            self.misses = max(0, self.misses - 1)
        if not self._closed and self._held is not None:
            self._held = None
            target[2] = SIZES["milk"][2] / 2  # it falls
        if self._held is not None:
            target[:] = self._state[1:4] + self._held
        return self._solved()

    def run(self, actions):
        for count, action in enumerate(actions, start=1):
            if self.step(action):
                return True, count
        return False, len(actions)

    def draw(self, camera):
        assert camera in self.cameras
        self.drawn += 1
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        picture[0, 0] = 255  # a corner of the first row
        return picture

    def proprioception(self):
        sizes = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7}
        return {key: np.full(size, self._state[1]) for key, size in sizes.items()}

    def set_look(self, amounts, seed):
        self.look = amounts
        self.looks.append((amounts, seed))

    def start_film(self, path, camera):
        self.films.append((path, camera))

    def end_film(self):
        pass

    def _solved(self):
        apart = self._state[self.entries("milk")][:2] - self._state[self.entries("basket")][:2]
        return bool(self._held is None and np.abs(apart).max() < 0.06)


def turn(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
