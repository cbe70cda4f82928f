"""One run of a stage for NVIDIA's profilers: warm, inside cudaProfilerStart and Stop."""

import torch
from rich.console import Console

from vlarft.bench import cases
from vlarft.bench.runner import Request
from vlarft.bench.stages import STAGES
from vlarft.bench.subjects import build_engine
from vlarft.engine.resolve import resolve_device
from vlarft.errors import ConfigError
from vlarft.terminal import command_line, say

_WARM = 2


def run_once(request: Request, console: Console) -> None:
    """Run a stage, and once more inside the window.

    Raises:
        ConfigError: the device is no GPU.
    """
    device = resolve_device(request.options.device)
    if device.type != "cuda":
        raise ConfigError("--profile: needs --device cuda; on a CPU use perf or py-spy")
    material = cases.build(request.case, request.seed).on(device)
    engine = build_engine(material, request.options)
    subject = STAGES[request.stage].subject(engine, material)
    for _ in range(_WARM):
        subject.run()
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    run = subject.run()
    torch.cuda.synchronize(device)
    torch.cuda.profiler.stop()
    engine.release()
    name = f"{request.case.name}-{request.stage}"
    say(console, f"{name}: {run.seconds:.4g} s in the window. To profile it:")
    for command in profiler_commands(name, command_line()):
        say(console, command)


def profiler_commands(name: str, command: str) -> tuple[str, str]:
    """Command lines of nsys and ncu that run `command` and keep its window under `name`.

    The host launches each pass: profilers see graphs' kernels, not surely those of a loop's body.
    """
    return (
        f"VLARFT_NVTX=1 VLARFT_CUDA_PASSES=1 nsys profile --capture-range=cudaProfilerApi "
        f"--cuda-graph-trace=node --trace=cuda,nvtx --output={name} {command}",
        f"VLARFT_CUDA_PASSES=1 ncu --profile-from-start off --graph-profiling node --set roofline "
        f"--launch-count 200 --export {name} {command}",
    )
