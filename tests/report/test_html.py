import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.report.synthetic import scenes
from vlarft.errors import ShapeError
from vlarft.report.data import Check, Headline, Panel, ReportData, Scene, TableData
from vlarft.report.html import duration, render, sprite


def page(**parts):
    return render(ReportData(title="A run", subtitle="done", verdict="good", **parts))


class Balance(HTMLParser):
    VOID = frozenset({"meta", "img", "input", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_balanced_and_needs_nothing_from_outside():
    text = page(
        scenes=[s.scene() for s in scenes()], tables=[TableData("t", ["a", "b"], [["x", "1"]])]
    )
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert all(a.startswith("data:") for a in parser.addresses)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", text)


def test_texts_are_escaped():
    text = page(
        headlines=[Headline("<b>", "<i>1</i>", "a & b")],
        checks=[Check("<script>alert(1)</script>", True, "")],
        configuration="<x>",
    )
    assert "<script>alert" not in text
    assert "<i>1" not in text
    assert "&lt;x&gt;" in text


def test_sections_without_content_are_left_out():
    text = page()
    for heading in (
        "Curves",
        "How sure",
        "What holds",
        "What the policy",
        "Where the time",
        "Figures in detail",
    ):
        assert heading not in text
    assert "setInterval" not in text


def test_checks_say_in_words_for_screen_readers_whether_they_hold():
    text = page(checks=[Check("one", True, "e"), Check("two", False, "e")])
    assert text.count('aria-label="holds"') == 1
    assert text.count('aria-label="does not hold"') == 1


def test_sprite_holds_every_frame_of_every_panel_without_loss():
    scene = scenes(1)[0].scene()
    address, frames, height, width = sprite(scene)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))
    assert sheet.shape == (frames * height, len(scene.panels) * width, 3)
    for number, panel in enumerate(scene.panels):
        column = sheet[:, number * width : (number + 1) * width].reshape(frames, height, width, 3)
        assert np.array_equal(column, panel.frames)


def test_panels_of_different_sizes_are_refused():
    small, large = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 9, 8, 3), np.uint8)
    with pytest.raises(ShapeError, match="one size"):
        sprite(Scene("s", [Panel("a", small), Panel("b", large)]))
    with pytest.raises(ShapeError, match="uint8"):
        sprite(Scene("s", [Panel("a", small.astype(np.float32))]))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.21, "4.2 s"), (59.99, "60.0 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_seconds_sum_up_small_stages():
    text = page(seconds={"a": 50.0, "b": 30.0, "c": 10.0, "d": 5.0, "e": 3.0, "f": 2.0})
    assert "a 50.0 s (50%)" in text
    assert "other 5.0 s (5%)" in text
