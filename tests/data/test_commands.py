import json

import h5py
import pytest
from typer.testing import CliRunner

from tests.data.libero_files import write_libero
from vlarft.data.commands import app
from vlarft.errors import ConfigError, DataError

runner = CliRunner()


@pytest.fixture
def folder(tmp_path):
    write_libero(tmp_path / "full" / "a_demo.hdf5", dict.fromkeys(range(5), 9))
    return tmp_path / "full"


def run(*arguments):
    result = runner.invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("command", ["inspect", "subset", "render", "scenes", "branch", "stats"])
def test_help_has_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: vlarft data {command}" in " ".join(result.output.split())


def test_json_on_standard_output_is_alone_there(folder):
    rows = json.loads(run("inspect", folder, "--json", "-").stdout)
    assert rows[0]["episodes"] == 5


def test_inspect_prints_plain_lines_without_a_terminal(folder):
    result = run("inspect", folder)
    assert "reading 1/1 a_demo.hdf5" in result.stderr
    assert "LIBERO demonstrations" in result.stdout


def test_subset_then_stats(folder, tmp_path):
    small, report = tmp_path / "small", tmp_path / "subset.json"
    run("subset", folder, "--out", small, "--train", 2, "--val", 1, "--json", report)
    (row,) = json.loads(report.read_text())
    assert row["episodes"] == ["demo_0", "demo_1", "demo_3"]
    for split, episodes in (("train", 2), ("val", 1), ("all", 3)):
        values = json.loads(run("stats", small, "--split", split, "--json", "-").stdout)
        assert values["episodes"] == episodes
        assert values["steps"] == 9 * episodes
    assert "2 episodes, 18 steps" in run("stats", small).stdout


def test_noops_are_dropped_when_asked(folder, tmp_path):
    with h5py.File(folder / "a_demo.hdf5", "r+") as handle:
        handle["data/demo_0/actions"][1:3, :6] = 0
    small = tmp_path / "small"
    run("subset", folder, "--out", small, "--train", 1, "--val", 0, "--drop-noops")
    for path, options, steps in ((folder, [], 36), (folder, ["--drop-noops"], 34), (small, [], 7)):
        values = json.loads(run("stats", path, *options, "--json", "-").stdout)
        assert values["steps"] == steps


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(ConfigError, match="allowed: train, val, all"):
        run("stats", folder, "--split", "test")
    with pytest.raises(DataError, match="no such file"):
        run("inspect", tmp_path / "absent")


def test_render_keeps_what_exists(folder):
    states = write_libero(folder.parent / "a_states.hdf5", {0: 2})
    result = run("render", states, "--out", folder, "--json", "-")
    assert json.loads(result.stdout) == [{"file": str(folder / "a_demo.hdf5"), "kept": True}]


def test_render_refuses_files_without_states(folder, tmp_path):
    with pytest.raises(DataError, match=r"a_demo\.hdf5: attribute 'data.suite' is missing"):
        run("render", folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_branches_do_not_replace_what_they_branch_from(tmp_path):
    source = tmp_path / "a_states.hdf5"
    source.write_bytes(b"states")
    with pytest.raises(DataError, match=r"a_states.hdf5 there is a source; name another folder$"):
        run("branch", tmp_path, "--out", tmp_path, "--overwrite")
    assert source.read_bytes() == b"states"
