import io
from contextlib import redirect_stderr

import pytest
from rich.console import Console

from vlarft.progress import StepProgress, phase, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=[io.StringIO, Terminal], ids=["file", "terminal"])
def stream(request, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return request.param()


def test_a_bar_on_a_terminal_and_about_ten_plain_lines_otherwise(stream):
    with redirect_stderr(stream), progress_bar("imagining") as show:
        before = stream.getvalue()
        for done in range(1, 41):
            show(done, 40)
    if stream.isatty():
        assert "imagining" in stream.getvalue()
        assert "100%" in stream.getvalue()
    else:
        assert before == "imagining\n"
        lines = stream.getvalue().splitlines()[1:]
        assert lines == [f"imagining {n}/40" for n in range(4, 41, 4)]


def test_a_long_call_is_announced(stream):
    with redirect_stderr(stream), phase("noise floor"):
        before = stream.getvalue()
    if stream.isatty():
        assert "noise floor" in stream.getvalue()
    else:
        assert before == stream.getvalue() == "noise floor\n"


def test_part_of_a_step_is_shown_on_terminals_only(stream):
    with StepProgress("rft", 10, console=Console(file=stream, width=200)) as progress:
        progress.step(1, "distance 0.1")
        progress.within("evaluation")(8, 64)
    assert ("evaluation 8/64" in stream.getvalue()) == stream.isatty()
