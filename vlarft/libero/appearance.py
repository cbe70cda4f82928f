"""How LIBERO's pictures look: camera, lights and colours of the scene, changed and restored.

Only fields of MuJoCo's model that its physics does not read are written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlarft.libero.scene import Float64Array

CAMERA = "agentview"
SURFACES = ("floor", "table")  # words in the names of bodies that are no objects


class Appearance:
    """The look of one model.

    Args:
        model: MuJoCo's model, in its own look.
        cameras: names of its cameras.
        bodies: names of its bodies; the first is the world.
    """

    def __init__(self, model: Any, cameras: Sequence[str], bodies: Sequence[str]) -> None:
        self._camera = list(cameras).index(CAMERA)
        self._camera_position = model.cam_pos[self._camera]
        self._camera_turn = model.cam_quat[self._camera]
        self._light_positions = model.light_pos
        self._brightness = (model.light_diffuse, model.light_specular)  # a row a light
        headlight = model.vis.headlight
        self._headlight = (headlight.ambient, headlight.diffuse)
        self._colours = model.mat_rgba
        self._surfaces = surface_materials(model, bodies)
        self._fields = (
            self._camera_position, self._camera_turn, self._light_positions, *self._brightness,
            *self._headlight, self._colours,
        )  # fmt: skip
        self._own = [np.array(values) for values in self._fields]

    def change(self, amounts: Mapping[str, float], rng: np.random.Generator) -> None:
        """Restore the model's own look, then change it.

        Args:
            amounts: largest change of each quantity, see `QUANTITIES`; others are left alone.
            rng: draws the changes, uniform.
        """
        for values, own in zip(self._fields, self._own, strict=True):
            values[...] = own
        if move := amounts.get("camera-position"):
            self._camera_position += rng.uniform(-move, move, 3)
        if turn := amounts.get("camera-turn"):
            self._camera_turn[...] = turned(self._camera_turn, rng.uniform(-turn, turn, 3))
        if move := amounts.get("light-position"):
            self._light_positions += rng.uniform(-move, move, self._light_positions.shape)
        if share := amounts.get("light-brightness"):
            factors = rng.uniform(1 - share, 1 + share, 1 + len(self._light_positions))
            for values in self._brightness:
                values *= factors[1:, None]
            for values in self._headlight:
                values *= factors[0]
        if share := amounts.get("surface-colour"):
            shape = (len(self._surfaces), 3)
            self._colours[self._surfaces, :3] *= rng.uniform(1 - share, 1, shape)


def surface_materials(model: Any, bodies: Sequence[str]) -> list[int]:
    """Numbers of the materials of floor, walls and table."""
    still = [i for i, name in enumerate(bodies) if i == 0 or any(word in name for word in SURFACES)]
    found = model.geom_matid[np.isin(model.geom_bodyid, still)]
    return [int(number) for number in np.unique(found[found >= 0])]


def turned(q: Float64Array, angles: Float64Array) -> Float64Array:
    """Quaternion w, x, y, z turned by a vector of angles in rad in its own frame."""
    angle = float(np.linalg.norm(angles))
    x, y, z = np.sin(angle / 2) * angles / max(angle, 1e-12)
    w = np.cos(angle / 2)
    right = np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]])
    return np.asarray(right @ q)
