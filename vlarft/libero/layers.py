"""Pictures drawn in two layers: what stands still is drawn once and kept with its depths.

LIBERO's scanned objects have more triangles than a small picture has pixels, and without a GPU
every triangle costs time. Between two pictures of an episode little more than the arm has moved,
so only that is drawn again; of both layers the nearer pixel is seen. Lights reach every surface
alike and nothing is transparent, so pictures are those of one layer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlarft.libero.scene import Float32Array, Float64Array, UInt8Array

MIRRORS = (0, 6)  # MuJoCo's planes and boxes; on other geoms reflectance has no effect
MESH = 7
OTHER_TRIANGLES = 100  # about as many as MuJoCo makes of a box or a capsule
STILL = 1e-5  # m, and parts of a turn: what has moved less stands where it stood
HIDDEN_GROUP = 5  # of geoms, never drawn


@dataclass(eq=False)
class _Layer:
    """What stands still: which geoms, where all geoms were, and how they look.

    `wasted` counts the triangles of other geoms that were drawn again though they had not moved
    since the picture before, when geoms were at `last`.
    """

    still: npt.NDArray[np.bool_]
    poses: Float64Array
    colours: UInt8Array
    depths: Float32Array
    last: Float64Array
    wasted: float = 0


class LayeredPictures:
    """Draws a model.

    Args:
        model: MuJoCo's model.
        data: its state.
        context: robosuite's off-screen context.
    """

    def __init__(self, model: Any, data: Any, context: Any) -> None:
        self._model, self._data, self._context = model, data, context
        self._kept: dict[tuple[int, int], _Layer] = {}
        shown = context.vopt.geomgroup[model.geom_group].astype(bool)
        self._triangles = _triangles(model) * shown
        self.layered = _is_plain(model, shown)

    def forget(self) -> None:
        """Draw everything again: the look has changed."""
        self._kept.clear()

    def draw(self, camera: int, size: int) -> UInt8Array:
        """A picture [size, size, 3] in LIBERO's raw rows, as the model's state is now.

        Args:
            camera: its number.
            size: edge in pixels.
        """
        self._context.gl_ctx.make_current()
        if not self.layered:
            return self._draw_all(camera, size)[0]
        poses = self._poses()
        layer = self._kept.get((camera, size))
        still = ~_moved(poses, layer.last if layer else poses)
        if layer is None or self._is_stale(layer, poses, still):
            drawn = self._draw_some(still, camera, size, sites=False)
            layer = self._kept[camera, size] = _Layer(still, poses, *drawn, last=poses)
        layer.last = poses
        colours, depths = self._draw_some(~layer.still, camera, size, sites=True)
        nearer = depths <= layer.depths
        return np.where(nearer[..., None], colours, layer.colours)

    def _is_stale(self, layer: _Layer, poses: Float64Array, still: npt.NDArray[np.bool_]) -> bool:
        """Whether something in a layer has moved, or drawing it again would have paid by now."""
        if (layer.still & _moved(poses, layer.poses)).any():
            return True
        layer.wasted += self._triangles @ (still & ~layer.still)
        return bool(layer.wasted > self._triangles @ still)

    def _poses(self) -> Float64Array:
        return np.concatenate([self._data.geom_xpos, self._data.geom_xmat], axis=1)

    def _draw_all(self, camera: int, size: int) -> tuple[UInt8Array, Float32Array]:
        self._context.render(width=size, height=size, camera_id=camera)
        colours, depths = self._context.read_pixels(size, size, depth=True)
        return colours, depths

    def _draw_some(
        self, shown: npt.NDArray[np.bool_], camera: int, size: int, *, sites: bool
    ) -> tuple[UInt8Array, Float32Array]:
        groups, site_groups = self._model.geom_group, self._context.vopt.sitegroup
        own, own_sites = groups.copy(), site_groups.copy()
        try:
            groups[~shown] = HIDDEN_GROUP
            if not sites:
                site_groups[:] = 0
            return self._draw_all(camera, size)
        finally:
            groups[:], site_groups[:] = own, own_sites


def _moved(poses: Float64Array, before: Float64Array) -> npt.NDArray[np.bool_]:
    moved: npt.NDArray[np.bool_] = np.abs(poses - before).max(axis=1) > STILL
    return moved


def _triangles(model: Any) -> Float64Array:
    """Of each geom, about."""
    meshes = np.where(model.geom_type == MESH, model.geom_dataid, 0)
    counts = np.append(model.mesh_facenum, 0)[meshes]
    return np.where(model.geom_type == MESH, counts, OTHER_TRIANGLES).astype(np.float64)


def _is_plain(model: Any, shown: npt.NDArray[np.bool_]) -> bool:
    """Whether layers show what one picture would: no shadow, no mirror, nothing transparent."""
    materials = model.geom_matid[shown]
    mirrors = materials[np.isin(model.geom_type[shown], MIRRORS) & (materials >= 0)]
    materials = materials[materials >= 0]
    opacity = np.append(model.geom_rgba[shown, 3], model.mat_rgba[materials, 3])
    opacity = opacity[opacity > 0]  # what is wholly transparent is not drawn
    return not (
        model.light_castshadow.any()
        or (opacity < 1).any()
        or (model.mat_reflectance[mirrors] > 0).any()
    )
