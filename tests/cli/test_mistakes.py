import importlib
import subprocess
import sys
import time

import pytest
import typer
from rich.text import Text

from vlarft import cli
from vlarft.cli import run_command

COMMANDS = (
    ["demo"], ["rft"], ["imagine"], ["report"], ["info"], ["data"], ["data", "inspect"],
    ["train"], ["train", "policy"],
    ["bench"], ["bench", "run"], ["bench", "compare"], ["bench", "report"], ["bench", "limits"],
    ["eval"], ["eval", "world-model"], ["weights"], ["weights", "lpips"],
)  # fmt: skip
RFT_SMALL = ["rft", "--run", "x", "--config", "rft-small"]


def one_line(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(command, capsys):
    assert run_command([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: vlarft" in text
    if command not in (["bench"], ["data"], ["train"], ["eval"], ["weights"]):
        assert "Example: vlarft" in " ".join(text.split())


def _commands(command, name=()):
    yield name, command
    for child, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*name, child))


def test_no_help_is_lost_to_markup():
    """A word in brackets is a style to rich, which leaves it out."""
    modules = [importlib.import_module(module) for module in cli._SUBCOMMANDS.values()]
    seen = 0
    for app in (cli.app, *(module.app for module in modules)):
        for name, command in _commands(typer.main.get_command(app)):
            for text in (command.help, *(getattr(p, "help", None) for p in command.params)):
                assert text is None or Text.from_markup(text).plain == text, name
                seen += text is not None
    assert seen > 200


def test_help_does_not_load_torch():
    code = (
        "import sys, vlarft.cli as c; c.run_command(['--help']); sys.exit('torch' in sys.modules)"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--form-scratch"], "did you mean '--from-scratch'?"),
        (["eval", "world-model", "--wold", "x"], "did you mean '--world'?"),
        (["train", "policy", "--confg", "tiny"], "did you mean '--config'?"),
        (
            ["train", "policy", "--config", "paper", "--data", "x", "--run", "y"],
            "pass --vlm FOLDER",
        ),
        (
            [
                "train",
                "policy",
                "--config",
                "paper",
                "--vlm",
                "/no/vlm",
                "--data",
                "x",
                "--run",
                "y",
            ],
            "/no/vlm/config.json: no such file",
        ),
        (["imagin"], "imagine"),
        (["eval", "world-model", "--windows", "many"], "--windows"),
        (["rft"], "--run"),
        (["report", "/no/such/run"], "/no/such/run: no such run folder"),
        (["imagine", "--out", "film.mp4"], "allowed: a name that ends in .gif or .webp"),
        (["imagine", "--out", "film.mp4"], "ffmpeg -i imagined.gif -pix_fmt yuv420p imagined.mp4"),
        (["rft", "--run", "x", "--set", "stepz=3"], "did you mean 'steps'?"),
        (["rft", "--run", "x", "--set", "=3"], "--set =3: expected key=value"),
        (["rft", "--run", "x", "--set", "reward..l1=3"], "expected key=value"),
        (["rft", "--run", "x", "--set", "steps=[3"], "--set steps=[3: the value is not valid YAML"),
        (["rft", "--run", "x", "--set", "steps=2026-13-01"], "the value is not valid YAML"),
        (["rft", "--run", "x", "--set", "steps.x=1"], "steps = {'x': 1}"),
        ([*RFT_SMALL, "--set", "steps.x=1"], "--set steps.x=1: steps is the value 50, no group"),
        (
            [*RFT_SMALL, "--set", "reward.metric.x=1"],
            "--set reward.metric.x=1: reward.metric is the value 'lpips-alex', no group of keys",
        ),
        (
            [*RFT_SMALL, "--set", "reward.frames.x=1"],
            "reward.frames is the value [4, 8], no group of keys",
        ),
        (["rft", "--run", "x", "--seeds", "a"], "expected whole numbers"),
        (["demo", "--config", "dmeo"], "did you mean 'demo'?"),
        (["eval", "world-model", "--world", "/no/world"], "/no/world"),
        (["eval", "world-model", "--top-p", "1.5"], "top_p"),
        (["rft", "--run", "x", "--backend", "natve"], "'auto', 'native', 'reference'"),
        (["demo", "--run", "x", "--dtype", "int8"], "'float32', 'bfloat16'"),
        (["imagine", "--attention", "flesh"], "'sdpa', 'flash-attn', 'xformers'"),
        (["demo", "--from-scratch", "--attention", "flash-attn"], "'flash-attn' is not available"),
        (["weights", "lpips", "--net", "resnet"], "resnet"),
        (["weights", "lpips", "--net", "vgg", "--file", "/no/file.pth"], "/no/file.pth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    assert words in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_main_exits_with_the_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vlarft", "nonsense"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2


def test_no_arguments_show_the_help(capsys):
    assert run_command([]) == 2
    assert "demo" in capsys.readouterr().err


def test_ctrl_c_is_130(monkeypatch, capsys, tmp_path):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlarft.report.build.write_report", stop)
    assert run_command(["report", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "policy", "--data", "x"], "the same command with --resume goes on"),
        (["rft"], "kept, the same command goes on"),
    ],
)
def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, tmp_path, command, words):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlarft.config.read_yaml", stop)
    assert run_command([*command, "--config", "tiny", "--run", str(tmp_path)]) == 130
    assert words in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_a_mistake(models, capsys, tmp_path):
    target = tmp_path / "missing" / "out.json"
    command = [
        "eval",
        "world-model",
        "--world",
        models.world,
        "--data",
        models.data,
        "--windows",
        "4",
    ]
    assert run_command([*command, "--json", str(target)]) == 2
    assert str(target) in capsys.readouterr().err


def test_an_unexpected_error_is_not_hidden(monkeypatch, tmp_path):
    def broken(_run):
        raise ZeroDivisionError

    monkeypatch.setattr("vlarft.report.build.write_report", broken)
    with pytest.raises(ZeroDivisionError):
        run_command(["report", str(tmp_path)])


@pytest.fixture
def torchrun(monkeypatch):
    """The second of four processes that torchrun started."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun")
def test_torchrun_is_refused_by_commands_that_cannot_divide_their_work(capsys):
    assert run_command(["info"]) == 2
    error = "error (process 1): only `vlarft rft` divides its work among the processes of torchrun"
    assert capsys.readouterr().err.strip() == error


@pytest.mark.usefixtures("torchrun")
def test_several_processes_choose_their_gpus_themselves(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    command = ["rft", "--run", "x", "--device"]
    assert run_command([*command, "cuda:0"]) == 2
    assert "use --device cuda: each takes its own GPU" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert run_command([*command, "cuda"]) == 2
    assert "process 1 of this machine has no GPU, there are 1" in capsys.readouterr().err
