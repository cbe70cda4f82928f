from io import StringIO

from rich.console import Console

from tests.data.libero_files import write_libero
from vlarft.data.inspect import inspect_files, inspection_table


def test_description_of_a_file(tmp_path):
    write_libero(
        tmp_path / "pick_up_demo.hdf5", {0: 5, 3: 7}, extra_frame=False, group_attributes={}
    )
    seen = []
    (row,) = inspect_files(tmp_path, progress=lambda *call: seen.append(call))
    assert row["instruction"] == "pick up"
    assert row["observation"] == "after action"
    assert (row["episodes"], row["train"], row["val"], row["successes"]) == (2, 1, 1, 2)
    assert (row["steps"], row["shortest"], row["longest"]) == (10, 4, 6)
    assert (row["height"], row["width"], row["kinds"]) == (16, 16, {"original": 2})
    assert row["bytes"] == (tmp_path / "pick_up_demo.hdf5").stat().st_size
    assert len(row["action_max"]) == 7
    assert seen == [(tmp_path / "pick_up_demo.hdf5", 1, 1)]


def test_table_sums_the_files(tmp_path):
    for name in ("a.hdf5", "b.hdf5"):
        write_libero(tmp_path / name, {0: 5})
    out = StringIO()
    Console(file=out, width=120).print(inspection_table(inspect_files(tmp_path)))
    last = [line for line in out.getvalue().splitlines() if line.strip()][-1]
    assert last.split()[:6] == ["2", "files", "2", "0", "2/2", "10"]
