"""Where networks run: device and precision, pictures to tensors and back, seeds, and what happens when memory runs out.

This is the only module that permutes axes: a picture is (H, W, 3) everywhere else, and (B, 3, H, W) inside networks.

Precision `auto` is float16 on a GPU (CUDA, MPS), bfloat16 on a CPU that multiplies bfloat16 matrices in hardware
(AVX-512 BF16, AMX), and float32 on every other CPU: there bfloat16 is emulated, several times slower and less exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from facefix.errors import DeviceError
from facefix.types import Pixels

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
_FULL = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate", "alloc_failed")


class Runnable(Protocol):
    """A network as `run` needs it."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in, (B, 3, H', W') out."""


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; `auto` is the first of CUDA, MPS and CPU that this machine has.

    Raises:
        DeviceError: no such device here.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if isinstance(name, str) and name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(
            f"device: expected auto, cpu, cuda, cuda:N or mps, got {name!r}; choose one of them"
        ) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        here = ", ".join(kind for kind in ("cpu", "mps") if there[kind])
        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
        here += "".join(f", cuda:{index}" for index in range(cuda))
        raise DeviceError(f"device {name} is not available here; choose auto or one of {here}")
    return device


def choose_precision(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The arithmetic of that name on the device; what `auto` takes is said at the top of this module.

    Raises:
        DeviceError: an unknown name, or a precision that the device cannot compute with.
    """
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name == "auto":
        if device.type != "cpu":
            return torch.float16
        return torch.bfloat16 if has_fast_bfloat16() else torch.float32
    if name not in PRECISIONS:
        raise DeviceError(f"precision: expected auto, {', '.join(PRECISIONS)}, got {name!r}; choose one of them")
    if name == "float16" and device.type == "cpu":
        raise DeviceError("precision float16 needs a GPU; choose float32, bfloat16 or auto on a CPU")
    return PRECISIONS[name]


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without that, float32 is faster and exact."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def to_batch(pictures: Sequence[Pixels], *, mean: float = 0.5, std: float = 0.5) -> Tensor:
    """The pictures as one (B, 3, H, W) float32 tensor, (value - mean) / std.

    Args:
        pictures: (H, W, 3) float32 each, 0..1, all of one size.
        mean: what a network's record says it was trained with; 0.5 and 0.5 give -1..1.
        std: as mean.

    Raises:
        ValueError: no picture, or several sizes.
    """
    if len({picture.shape for picture in pictures}) != 1:
        raise ValueError(f"expected pictures of one size, got {sorted({picture.shape for picture in pictures})}")
    stacked = np.empty((len(pictures), 3, *pictures[0].shape[:2]), np.float32)
    for index, picture in enumerate(pictures):
        stacked[index] = picture.transpose(2, 0, 1)
    return torch.from_numpy(stacked).sub_(mean).div_(std)


def from_batch(batch: Tensor, *, mean: float = 0.5, std: float = 0.5) -> list[Pixels]:
    """Each of (B, 3, H, W) as (H, W, 3) float32 pixels, value · std + mean clipped to 0..1."""
    scaled = batch.detach().to("cpu", torch.float32).mul(std).add_(mean).clamp_(0, 1)
    return [np.ascontiguousarray(picture.numpy().transpose(1, 2, 0)) for picture in scaled]


def seeded(seed: int, device: torch.device | None = None) -> torch.Generator:
    """A random generator that starts at `seed`, on the CPU unless a device is given."""
    return torch.Generator(device or "cpu").manual_seed(seed)


def run(
    network: Runnable, pictures: Sequence[Pixels], *, batch: int = 4, mean: float = 0.5, std: float = 0.5
) -> list[Pixels]:
    """What the network makes of each picture; batches are halved for as long as they do not fit the memory.

    Args:
        network: (B, 3, H, W) -> (B, 3, H', W').
        pictures: (H, W, 3) float32 each, 0..1, all of one size.
        batch: how many at once, at most.
        mean: as in to_batch, both ways.
        std: as mean.

    Raises:
        DeviceError: not even one picture fits the device's memory.
    """
    results: list[Pixels] = []
    with torch.inference_mode():
        for part in in_batches(lambda group: network(to_batch(group, mean=mean, std=std)), pictures, batch):
            results += from_batch(part, mean=mean, std=std)
    return results


def in_batches(
    compute: Callable[[Sequence[Pixels]], Tensor], pictures: Sequence[Pixels], size: int
) -> Iterator[Tensor]:
    """The computed parts in order, each of `size` pictures; the size is halved whenever one runs out of memory.

    Raises:
        ValueError: size is below 1.
        DeviceError: a part of one picture runs out of memory.
    """
    if size < 1:
        raise ValueError(f"expected a batch of at least 1, got {size}")
    done = 0
    while done < len(pictures):
        group = pictures[done : done + size]
        part, reason = _attempt(compute, group)
        if part is not None:
            yield part
            done += len(group)
        elif len(group) == 1:
            raise DeviceError(
                f"out of memory with a single face ({reason}); choose a smaller network or another device"
            )
        else:
            size = len(group) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def fitting(compute: Callable[[_Given], _Made], options: Sequence[_Given], advice: str) -> tuple[_Made, _Given]:
    """What was computed with the first of the options that the memory holds, and that option.

    Args:
        compute: takes one option; it is called again from the start when one runs out of memory.
        options: from the best to the one that asks for the least memory, at least one.
        advice: what to do when none fits, for the message.

    Raises:
        DeviceError: every option runs out of memory.

    >>> fitting(lambda tile: tile * 2, [64, 32], "choose another device")
    (128, 64)
    """
    reason = ""
    for option in options:
        made, reason = _attempt(compute, option)
        if made is not None:
            return made, option
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise DeviceError(f"out of memory ({reason}); {advice}")


def _attempt(compute: Callable[[_Given], _Made], given: _Given) -> tuple[_Made | None, str]:
    """What was computed, or None and the first line of what the allocator said; other errors pass."""
    try:
        return compute(given), ""
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error) or type(error).__name__
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not full and not any(sign in text.lower() for sign in _FULL):
            raise
        return None, text.splitlines()[0].strip().rstrip(".")
