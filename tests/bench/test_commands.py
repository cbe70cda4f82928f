"""The command line, from its flags to its files."""

import json

import pytest

from vlarft.bench import limits
from vlarft.bench.cases import NAMED, Case, build, find_case, output_hash
from vlarft.bench.profile import profiler_commands
from vlarft.bench.results import load
from vlarft.bench.stages import STAGES
from vlarft.cli import run_command
from vlarft.errors import ConfigError


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch):
    monkeypatch.setattr(limits, "_LEAST_BUFFER", 8 << 20)
    monkeypatch.setattr(limits, "_CACHE_TIMES", 0)


def test_run_compare_report(tmp_path, capsys):
    path = tmp_path / "a.json"
    command = "bench run --case tiny --stage all --baselines torch2,reference --rounds 1 --json"
    assert run_command([*command.split(), str(path)]) == 0
    results = load(path)
    assert [r.stage for r in results] == [
        "encode", "prefill", "imagine", "decode", "compare", "judge", "rollout",
    ]  # fmt: skip
    imagine = results[2]
    assert imagine.baselines.keys() == {"torch2"}
    assert imagine.baselines["torch2"].check["same"]
    assert imagine.output_hash
    assert imagine.bytes > 0
    # anyone can recompute the share from what stands in the file
    rates = imagine.limits["read_gbps"] * 1e9, imagine.limits["matmul_gflops"] * 1e9
    floor = sum(
        max((w["bytes"] + i * w["bytes_step"]) / rates[0],
            (w["flops"] + i * w["flops_step"]) / rates[1])
        for w in imagine.work
        for i in range(w["count"])
    )  # fmt: skip
    assert imagine.share_of_limit == pytest.approx(floor / imagine.seconds.median)
    capsys.readouterr()
    assert run_command(["bench", "compare", str(path), str(path), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [d["ratio"] for d in found["differences"]] == [1.0] * len(STAGES)
    assert run_command(["bench", "report", str(path), "-o", str(tmp_path / "r.html")]) == 0
    assert run_command(["bench", "report", str(path), "-o", str(tmp_path / "r.md")]) == 0
    assert "tiny" in (tmp_path / "r.md").read_text()


def test_limits(capsys):
    assert run_command(["bench", "limits", "--threads", "1", "--json", "-"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["limits"]
    assert one["threads"] == 1
    assert one["read_gbps"] > 0.01
    assert one["fma_gflops"] > 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run --case smal-1x4", "unknown case 'smal-1x4' (did you mean 'small-1x4'?)"),
        ("run --case small-0x4", "unknown case"),
        ("run --case paper-1x16-t9", "unknown case"),
        ("run --case small-1x99", "at most 64 scenes and 64 rollouts"),
        ("run --stage imagin", "did you mean 'imagine'?"),
        ("run --baselines hff", "did you mean 'hf'?"),
        ("run --dtype float16", "float16"),
        ("run --backend fast", "allowed: auto, native, reference"),
        ("run --device tpu", "tpu"),
        ("run --sample often", "allowed: auto, always, never"),
        ("run --json /no/such/folder/a.json", "its folder does not exist"),
        ("run --cas tiny", "did you mean '--case'?"),
        ("compare /no/a.json /no/b.json", "/no/a.json: no such result file"),
        ("report /no/a.json -o r.pdf", "allowed: a name that ends in .html or .md"),
        ("report /no/a.json", "give -o"),
        ("limits --threads 0", "--threads"),
    ],
)
def test_mistakes(arguments, words, capsys):
    assert run_command(["bench", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_cases():
    assert find_case("small-4x16") == Case("small-4x16", "small", 4, 16, 8)
    assert find_case("paper-2x3-t5") == Case("paper-2x3-t5", "paper", 2, 3, 5)
    assert [find_case(name).name for name in NAMED] == list(NAMED)
    with pytest.raises(ConfigError):
        find_case("small-1x16-t0")


def test_a_seed_gives_the_same_world_and_inputs():
    one, two, other = (build(find_case("tiny"), seed) for seed in (0, 0, 1))
    assert output_hash(one.first) == output_hash(two.first) != output_hash(other.first)
    assert one.actions.equal(two.actions)
    head = "lm_head.weight"
    states = [m.world.transformer.state_dict()[head] for m in (one, two, other)]
    assert states[0].equal(states[1])
    assert not states[0].equal(states[2])


def test_dry_run_counts_and_runs_nothing(capsys):
    arguments = ["bench", "run", "--dry-run", "--device", "cuda", "--case", "small-1x16", "--json"]
    assert run_command([*arguments, "-", "--stage", "imagine,decode"]) == 0
    imagine, decode = json.loads(capsys.readouterr().out)["predictions"]
    assert imagine["rates"] == "H200 (stated, not measured)"
    assert imagine["passes"] == 8 * 16
    assert imagine["latency_seconds"] == pytest.approx(8 * 16 * (5 * 4 + 3) * 2.5e-6)
    assert imagine["seconds"] >= imagine["bytes"] / 4.3e12
    assert decode["passes"] == 0
    assert decode["seconds"] > 0


def test_tables_are_whole_where_no_terminal_sets_a_width(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    arguments = ["bench", "run", "--dry-run", "--device", "cuda", "--dtype", "bfloat16"]
    assert run_command([*arguments, "--case", "small-1x16", "--stage", "imagine"]) == 0
    out = capsys.readouterr().out
    assert all(f" {column} " in out for column in ("us a pass", "of kernels", "seconds"))
    assert max(map(len, out.splitlines())) > 80


def test_dry_run_counts_a_narrow_cache(capsys):
    arguments = ["bench", "run", "--dry-run", "--device", "cuda", "--dtype", "bfloat16"]
    found = []
    for more in ([], ["--cache-dtype", "float8_e4m3fn"]):
        assert run_command([*arguments, "--case", "small-1x16", "--json", "-", *more]) == 0
        found += json.loads(capsys.readouterr().out)["predictions"]
    wide, narrow = found
    assert (wide["cache_dtype"], narrow["cache_dtype"]) == ("bfloat16", "float8_e4m3fn")
    assert narrow["flops"] == wide["flops"]
    assert wide["bytes"] / 2 < narrow["bytes"] < wide["bytes"]
    assert narrow["seconds"] < wide["seconds"]


def test_a_narrow_cache_needs_a_gpu(capsys):
    assert run_command(["bench", "run", "--case", "tiny", "--cache-dtype", "float8_e4m3fn"]) != 0
    assert "elsewhere it saves nothing" in capsys.readouterr().err


def test_gpus_are_asked_for_by_name(capsys):
    assert run_command(["bench", "run", "--case", "tiny", "--profile"]) != 0
    assert "--profile: needs --device cuda" in capsys.readouterr().err


def test_profilers_run_the_same_command_and_its_window_only():
    command = "vlarft bench run --device cuda --profile"
    nsys, ncu = profiler_commands("tiny-imagine", command)
    assert nsys.startswith("VLARFT_NVTX=1 VLARFT_CUDA_PASSES=1 nsys profile --capture-range=")
    assert "--cuda-graph-trace=node" in nsys
    assert ncu.startswith("VLARFT_CUDA_PASSES=1 ncu --profile-from-start off --graph-profiling ")
    for line in (nsys, ncu):
        assert line.endswith(f"tiny-imagine {command}")
