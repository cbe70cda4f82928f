import json

import numpy as np
import pytest
from PIL import Image

from tests.report.synthetic import scenes
from vlarft.errors import DataError
from vlarft.report.environment import environment, write_environment
from vlarft.report.imagination import write_animation
from vlarft.report.scenes import difference, load_scenes, save_scenes


def test_scenes_are_read_back_as_written(tmp_path):
    written = scenes()
    save_scenes(tmp_path, written)
    read = load_scenes(tmp_path)
    assert [s.title for s in read] == [s.title for s in written]
    assert read[1].distances == written[1].distances
    for name, frames in written[0].pictures.items():
        assert np.array_equal(read[0].pictures[name], frames)


def test_no_scenes_and_damaged_scenes(tmp_path):
    assert load_scenes(tmp_path) == []
    (tmp_path / "scenes.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a file of scenes"):
        load_scenes(tmp_path)


def test_difference_is_dark_where_equal_and_grows_with_the_difference():
    a = np.zeros((1, 1, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0, :, 1] = [0, 10, 30, 200]
    picture = difference(a, b).astype(int).sum(-1)[0, 0]
    assert (np.diff(picture) > 0).all()
    assert np.array_equal(difference(a, b), difference(b, a))  # no wrap-around of uint8
    assert picture[0] < 60


def test_panels_show_the_distances():
    notes = {p.caption: p.note for p in scenes(1)[0].scene().panels}
    assert notes["Policy before"] == "distance 0.151"
    assert notes["Policy after"] == "distance 0.117"


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animation_has_all_frames_side_by_side(tmp_path, name):
    panels = [
        np.full((5, 8, 8, 3), 50 * i + np.arange(5)[:, None, None, None] * 9, np.uint8)
        for i in range(3)
    ]
    write_animation(tmp_path / "new" / name, panels, scale=2)
    with Image.open(tmp_path / "new" / name) as image:
        assert image.n_frames == 5
        assert image.size == (2 * (3 * 8 + 2 * 2), 16)


def test_environment_is_complete_and_json(tmp_path):
    content = json.loads(write_environment(tmp_path / "run").read_text())
    assert content["packages"]["torch"]
    assert content["cores"] >= 1
    assert content["memory_bytes"] > 2**28
    assert set(environment()) == set(content)
