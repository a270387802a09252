"""What the machine offers the workers of a run: its cores, its free memory, its GPUs."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from facefix.errors import UsageError

if TYPE_CHECKING:
    from facefix.weights import Store

_BASE_BYTES, _BYTES_OF_WEIGHTS = 1 << 30, 8


def devices_for(device: str, workers: int, heaviest_bytes: int = 0) -> tuple[str, ...]:
    """The device of each worker process.

    Args:
        device: as `FaceFix.load` takes it; auto and cuda are spread over all GPUs.
        workers: how many; 0 chooses: one for each GPU, else one for each CPU core as far as memory allows.
        heaviest_bytes: size of the largest weight file, from which the memory of a worker is guessed.

    Raises:
        UsageError: fewer than one.
    """
    if workers < 0:
        raise UsageError(f"--workers: expected 1 or more, or 0 to choose, got {workers}")
    gpus = _gpus() if device in ("auto", "cuda") else 0
    if gpus:
        return tuple(f"cuda:{index % gpus}" for index in range(workers or gpus))
    if device not in ("auto", "cpu"):
        return (device,) * (workers or 1)
    if not workers:
        workers = max(1, min(cpu_cores(), _free_bytes() // memory_bytes(heaviest_bytes)))
    return (device,) * workers


def heaviest_bytes(restorer: str, store: Store) -> int:
    """The size of the largest weight file that a recipe with this restorer may take."""
    if restorer == "auto":
        found = [path for _, path in store.available("restorer")]
    else:
        named = store.find(restorer)
        found = [named[1]] if named is not None else []
    return max((path.stat().st_size for path in found), default=0)


def memory_bytes(heaviest_bytes: int) -> int:
    """A guess at the memory that a worker needs, from the size of the largest weight file."""
    return _BASE_BYTES + _BYTES_OF_WEIGHTS * heaviest_bytes


def _gpus() -> int:
    """How many CUDA devices there are; torch is only asked where there may be any."""
    if sys.platform == "linux" and not Path("/dev/nvidiactl").exists() and not Path("/dev/kfd").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def cpu_cores() -> int:
    """How many cores this process may use: its affinity, or less where its control group says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _free_bytes() -> int:
    """Memory that is free for use, or enough for anything where the system does not say."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    return sys.maxsize
