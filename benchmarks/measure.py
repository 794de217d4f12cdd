"""Time and memory of one piece of work, in a process of its own."""

import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch


def alone(work: Callable[..., dict], *arguments: object) -> dict:
    """What `work(*arguments)` returns in a new process, whose memory nothing else has touched."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def repeat(step: Callable[[], object], times: int, warm: int, device: torch.device) -> dict:
    """`seconds` of each of `times` steps after `warm` others, and `memory`: the most bytes held over what was held before
    (allocated on a GPU, the resident set on a CPU)."""
    cuda = device.type == "cuda"
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


def conditions(device: torch.device) -> dict:
    """What a measurement was made on."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name()
    return {"torch": str(torch.__version__), "device": name, "threads": torch.get_num_threads()}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
