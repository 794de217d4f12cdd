"""Measures time and memory of one piece of work in a separate process."""

import json
import multiprocessing
import os
import platform
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from engine.provenance import circumstances

ROOT = Path(__file__).parent.parent


def alone(work: Callable[..., dict], *arguments: object) -> dict:
    """Runs `work(*arguments)` in a new process, which has fresh memory, and returns the result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def repeat(step: Callable[[], object], times: int, warm: int, device: torch.device) -> dict:
    """Runs `warm` steps, then `times` timed steps. Returns `seconds` of each timed step and `memory`: peak bytes minus bytes
    before the first step (allocated memory on a GPU, the resident set on a CPU)."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if cuda else _resident()
    seconds = []
    for _ in range(warm + times):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds[warm:], "memory": peak - held}


def step_times(command: list[str], steps: int, environment: dict[str, str] | None = None) -> list[float]:
    """Starts a training command, and returns the seconds until the losses of each of the first `steps` steps are written.

    command: train.py with its flags, without --out. The training is then stopped. Raises RuntimeError if it ends earlier.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [*command, "--train.log_every", "1", "--out", out]
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        metrics = Path(out) / "metrics.jsonl"
        times: list[float] = []
        while len(times) < steps:
            written = metrics.read_bytes().count(b'"loss"') if metrics.is_file() else 0
            times += [time.perf_counter() - start] * (min(written, steps) - len(times))
            if process.poll() is not None and len(times) < steps:
                raise RuntimeError(process.communicate()[1].decode())
            time.sleep(0.01)
        process.terminate()  # torchrun passes the signal on
        process.communicate()
        return times


def conditions(device: torch.device) -> dict:
    """The hardware, versions and settings of a measurement."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name()
    under = {"device": name, "threads": torch.get_num_threads(), **circumstances()}
    if device.type == "cuda":  # PyTorch's defaults: convolutions in TF32, matrix products in float32
        under |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        under |= {"tf32 convolutions": torch.backends.cudnn.allow_tf32, "tf32 products": torch.backends.cuda.matmul.allow_tf32}
    return under


def as_json(rows: list[dict], device: torch.device, **more: object) -> str:
    """The rows and the conditions of the measurement as JSON."""
    return json.dumps({"conditions": conditions(device) | more, "rows": rows}, indent=1)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
