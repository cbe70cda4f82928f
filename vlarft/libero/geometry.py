"""Where the surfaces of simulated objects are, from MuJoCo's model and data."""

from typing import Any

import numpy as np

from vlarft.libero.scene import Float64Array

SPHERE, CAPSULE, CYLINDER, MESH = 2, 3, 5, 7  # MuJoCo's mjtGeom
RING = 24  # points on a circle


def body_points(model: Any, data: Any, root: int) -> Float64Array:
    """World coordinates [n, 3] of the collision shapes of a body and all that hangs on it.

    Args:
        model: MuJoCo's model.
        data: its data, kinematics up to date.
        root: number of the body.
    """
    bodies = _subtree(model, root)
    found = []
    for geom in range(model.ngeom):
        collides = model.geom_contype[geom] or model.geom_conaffinity[geom]
        if model.geom_bodyid[geom] in bodies and collides:
            rotation = np.asarray(data.geom_xmat[geom]).reshape(3, 3)
            found.append(_local_points(model, geom) @ rotation.T + data.geom_xpos[geom])
    return np.concatenate(found)


def _subtree(model: Any, root: int) -> set[int]:
    bodies = {root}
    for body in range(root + 1, model.nbody):  # parents come before their children
        if int(model.body_parentid[body]) in bodies:
            bodies.add(body)
    return bodies


def _local_points(model: Any, geom: int) -> Float64Array:
    kind, size = int(model.geom_type[geom]), np.asarray(model.geom_size[geom], np.float64)
    if kind == MESH:
        mesh = model.geom_dataid[geom]
        first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
        return np.asarray(model.mesh_vert[first : first + count], np.float64)
    if kind in (CAPSULE, CYLINDER):
        angle = np.linspace(0, 2 * np.pi, RING, endpoint=False)
        ring = size[0] * np.stack([np.cos(angle), np.sin(angle)], 1)
        half = size[1] + (size[0] if kind == CAPSULE else 0.0)
        return np.concatenate([np.c_[ring, np.full(RING, z)] for z in (-half, half)])
    half_edges = np.repeat(size[:1], 3) if kind == SPHERE else size
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    return np.asarray(corners * half_edges, np.float64)
