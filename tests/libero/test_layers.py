"""Layered pictures against whole ones, on a model of squares that stand at different depths."""

from types import SimpleNamespace

import numpy as np
import pytest

from vlarft.libero.layers import STILL, LayeredPictures

PLANE, MESH = 0, 7
SIZE, GEOMS = 32, 6


class Context:
    """Draws geoms of shown groups as squares of one colour; counts them."""

    def __init__(self, model, data):
        self.model, self.data, self.drawn = model, data, 0
        self.vopt = SimpleNamespace(
            geomgroup=np.array([0, 1, 1, 0, 0, 0], np.uint8), sitegroup=np.ones(6, np.uint8)
        )
        self.gl_ctx = SimpleNamespace(make_current=lambda: None)

    def render(self, width, height, camera_id):
        self.colours = np.full((height, width, 3), 9 + camera_id, np.uint8)  # the sky
        self.depths = np.ones((height, width), np.float32)
        for number, place in enumerate(self.data.geom_xpos):
            if self.vopt.geomgroup[self.model.geom_group[number]]:
                self.drawn += 1
                self._paint(place, 20 * (number + 1))
        if self.vopt.sitegroup[0]:  # a mark that goes with the first geom
            self._paint(self.data.geom_xpos[0] + [0.3, 0.3, -0.1], 255, edge=2)

    def _paint(self, place, colour, edge=8):
        x, y = (int(v * SIZE) for v in place[:2])
        square = np.s_[max(0, y) : max(0, y + edge), max(0, x) : max(0, x + edge)]
        nearer = self.depths[square] > place[2]
        self.depths[square][nearer] = place[2]
        self.colours[square][nearer] = colour

    def read_pixels(self, width, height, depth):
        assert depth
        assert self.colours.shape[:2] == (height, width)
        return self.colours, self.depths


@pytest.fixture
def scene():
    """Model, data and context of squares; the last one is of a hidden group."""
    rng = np.random.default_rng(0)
    model = SimpleNamespace(
        geom_group=np.array([1] * (GEOMS - 1) + [0]),
        geom_matid=np.array([0, 0, -1, -1, 1, 1]),
        geom_type=np.full(GEOMS, MESH),
        geom_dataid=np.arange(GEOMS),
        mesh_facenum=np.array([10, 10, 10, 10, 40, 1000]),
        geom_rgba=np.ones((GEOMS, 4)),
        mat_rgba=np.ones((2, 4)),
        mat_reflectance=np.array([0.5, 0.0]),  # of a mesh: no mirror
        light_castshadow=np.zeros(2, np.uint8),
    )
    data = SimpleNamespace(
        geom_xpos=rng.uniform(0, 0.8, (GEOMS, 3)), geom_xmat=np.zeros((GEOMS, 9))
    )
    return model, data, Context(model, data)


def whole(context, camera=0):
    context.render(SIZE, SIZE, camera)
    return context.colours


def test_layers_show_what_one_picture_shows(scene):
    _, data, context = scene
    pictures, rng = LayeredPictures(*scene), np.random.default_rng(1)
    for step in range(60):
        moving = [[0], [0, 1], [4, 0], [3]][step // 15]  # one after another begins to move
        data.geom_xpos[moving] += rng.uniform(-0.1, 0.1, (len(moving), 3))
        if step % 7 == 0:
            data.geom_xmat[2] += 1e-3  # turns where it stands
        for camera in (0, 1):
            np.testing.assert_array_equal(pictures.draw(camera, SIZE), whole(context, camera))


def test_what_stands_still_is_not_drawn_again(scene):
    model, data, context = scene
    pictures = LayeredPictures(*scene)
    for _ in range(3):  # drawn once; then without the one that moves; then that one alone
        context.drawn = 0
        pictures.draw(0, SIZE)
        data.geom_xpos[0] += 0.01
    assert context.drawn == 1
    data.geom_xpos[1:] += STILL / 2  # a resting object trembles
    context.drawn = 0
    pictures.draw(0, SIZE)
    assert context.drawn == 1
    assert model.geom_group.tolist() == [1] * (GEOMS - 1) + [0]
    assert context.vopt.sitegroup.all()


def test_what_has_come_to_rest_is_drawn_once_more(scene):
    _, data, context = scene
    pictures, drawn = LayeredPictures(*scene), []
    pictures.draw(0, SIZE)
    data.geom_xpos[:5] += 0.02  # another scene: everything has moved
    for _ in range(8):
        context.drawn = 0
        pictures.draw(0, SIZE)
        drawn.append(context.drawn)
        data.geom_xpos[0] += 0.01  # only this one goes on
    # 70 of 80 triangles rest, so after two pictures a layer of them pays.
    assert drawn == [5, 5, 5, 1, 1, 1, 1, 1]


def test_a_new_look_is_drawn_whole(scene):
    _, _, context = scene
    pictures = LayeredPictures(*scene)
    pictures.draw(0, SIZE)
    pictures.forget()
    context.drawn = 0
    pictures.draw(0, SIZE)
    assert context.drawn == GEOMS - 1


def test_cameras_do_not_disturb_each_other(scene):
    _, data, context = scene
    pictures = LayeredPictures(*scene)
    for _ in range(4):
        context.drawn = 0
        for camera in (0, 1):
            pictures.draw(camera, SIZE)
        data.geom_xpos[0] += 0.01
    assert context.drawn == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.light_castshadow.fill(1),
        lambda model: model.geom_rgba[0].fill(0.5),
        lambda model: model.mat_rgba[1].fill(0.5),
        lambda model: model.geom_type.fill(PLANE),
    ],
)
def test_what_layers_cannot_show_is_drawn_whole(scene, change):
    model, data, context = scene
    change(model)
    pictures = LayeredPictures(*scene)
    for _ in range(3):
        context.drawn = 0
        np.testing.assert_array_equal(pictures.draw(0, SIZE), whole(context))
        assert context.drawn == 2 * (GEOMS - 1)
        data.geom_xpos[0] += 0.01


def test_what_cannot_be_seen_does_not_matter(scene):
    model, _, _ = scene
    model.geom_rgba[-1], model.geom_rgba[0, 3] = 0.5, 0  # of a hidden group; wholly transparent
    assert LayeredPictures(*scene).layered
