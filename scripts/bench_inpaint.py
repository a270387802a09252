"""The `inpaint` part of the bench: facefix's LaMa at full size beside spandrel's, forward and in refinement.

Both get the same made weights and the same picture, in one process, their repeats interleaved; the figure is the
median. A refinement step is one pass through the rear and its gradient with regard to the features. What each takes at
most beyond its weights is measured in processes of their own (on Linux).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facefix import networks
from facefix.ffc import Generator, Shape
from facefix.inpaint import lama

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
REQUIRED_SPEED = 1.0
REQUIRED_MEMORY = 4.0
KINDS = ("facefix", "spandrel")

Run = Callable[[], Tensor]


def main(argv: Sequence[str]) -> int:
    """Measure LaMa: a pass, a refinement step, memory, exactness; 1 when a required ratio did not hold."""
    parser = argparse.ArgumentParser(prog="bench.py inpaint", description=main.__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512], metavar="PX")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="cpu: on a busy machine, with --threads 1"
    )
    parser.add_argument("--no-steps", action="store_true", help="leave refinement steps out")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--refine", type=int, metavar="PX", help="also time a whole refinement of this size (slow)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights = _weights_file(Path(folder) / "made.safetensors")
        held = [_measure(size, arguments, weights) for size in arguments.sizes]
        if arguments.refine:
            _print_refinement(arguments.refine, weights, CLOCKS[arguments.clock])
    return 0 if all(held) else 1


def _measure(size: int, arguments: argparse.Namespace, weights: Path) -> bool:
    halves = {kind: _halves(kind, weights) for kind in KINDS}
    picture = _seen(size)
    clock = CLOCKS[arguments.clock]
    print(f"\nLaMa {size} px, {arguments.threads} threads, {arguments.clock} clock, median of {arguments.repeats}")
    passes: dict[str, Run] = {kind: lambda h=h: h[1](h[0](picture)) for kind, h in halves.items()}  # type: ignore[misc]
    with torch.inference_mode():
        outputs = {kind: run() for kind, run in passes.items()}
        seconds, rate = _interleaved(passes, arguments.repeats, clock)
    off = (outputs["facefix"] - outputs["spandrel"]).norm() / outputs["spandrel"].norm()
    floor = _gigaflops(Shape(), size)
    print(f"  floor {floor / rate:.2f} s: {floor:.0f} GFLOP at the {rate:.0f} GFLOP/s of a plain 3x3 convolution")
    print(f"  relative difference of facefix and spandrel: {off:.1e}")
    ratios = [_print_pair("a pass", seconds)]
    if not arguments.no_steps:
        with torch.no_grad():
            features = halves["facefix"][0](picture)
        steps: dict[str, Run] = {kind: lambda r=h[1]: _step(r, features) for kind, h in halves.items()}  # type: ignore[misc]
        seconds, _ = _interleaved(steps, arguments.repeats, clock)
        ratios.append(_print_pair("a refinement step", seconds))
    held = min(ratios) >= REQUIRED_SPEED
    if not arguments.no_memory:
        held &= _print_memory(size, arguments, weights)
    return held


def _print_pair(what: str, seconds: dict[str, float]) -> float:
    ratio = seconds["spandrel"] / seconds["facefix"]
    print(f"  {what:18} facefix {seconds['facefix']:7.3f} s  spandrel {seconds['spandrel']:7.3f} s  {ratio:5.2f}x")
    return ratio


def _print_refinement(size: int, weights: Path, clock: Callable[[], float]) -> None:
    engine = lama.load(weights, device="cpu", refine=True, pixel_budget=max(size * size, lama.LEAST_BUDGET))
    picture = _seen(size)[0]
    scene = picture[:3].permute(1, 2, 0).contiguous().numpy()
    started = clock()
    engine.fill(scene, picture[3].numpy())
    print(f"\n{engine.name}: {size}x{size} px in {clock() - started:.1f} s")


def _interleaved(runs: dict[str, Run], repeats: int, clock: Callable[[], float]) -> tuple[dict[str, float], float]:
    """Median seconds, and the rate of a plain convolution in GFLOP/s, all measured turn by turn."""
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    rates = []
    for _ in range(repeats):
        rates.append(_convolution_rate(clock))
        for kind, run in runs.items():
            started = clock()
            run()
            times[kind].append(clock() - started)
    return {kind: statistics.median(each) for kind, each in times.items()}, statistics.median(rates)


def _convolution_rate(clock: Callable[[], float]) -> float:
    """GFLOP/s of a plain 3x3 convolution with 256 channels at 128 px."""
    values = torch.ones(1, 256, 128, 128).to(memory_format=torch.channels_last)
    weight = torch.ones(256, 256, 3, 3).to(memory_format=torch.channels_last)
    F.conv2d(values, weight, padding=1)
    started = clock()
    F.conv2d(values, weight, padding=1)
    return 2 * 128**2 * 256**2 * 9 / (clock() - started) / 1e9


def _gigaflops(shape: Shape, size: int) -> float:
    """Operations of the network's convolutions, two for each product, in GFLOP; Fourier transforms not counted."""
    widths, local = shape.widths, shape.local
    far = widths[-1] - local
    total = size**2 * 49 * widths[0] * (shape.inputs + shape.outputs)
    for step, (wide, deep) in enumerate(pairwise(widths), start=1):
        total += 2 * (size >> step) ** 2 * 9 * wide * deep  # on the way down and on the way up
    spectral = far * far // 2 * 2 + far * far // 2  # two pointwise convolutions, and one of half a spectrum
    layer = 9 * (local * (local + far) + far * local) + spectral
    total += (size >> 3) ** 2 * 2 * shape.blocks * layer
    return 2 * total / 1e9


# --- weights, pictures, the networks ---------------------------------------------------------------------------------


def _weights_file(path: Path) -> Path:
    """A checkpoint of big-LaMa's layout with made weights."""
    draw = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in Generator.layout(Shape()).items():
        drawn = torch.randn(shape, generator=draw)
        if name.endswith("running_var"):
            drawn = 1 + 0.1 * drawn.abs()
        elif name.endswith("num_batches_tracked"):
            drawn = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith(("bias", "running_mean")):
            drawn = 0.02 * drawn
        elif len(shape) == 1:
            drawn = 1 + 0.1 * drawn
        else:
            # smaller in the blocks: 18 residuals would add up to numbers whose sigmoid hides every error
            drawn *= (2 / drawn[0].numel()) ** 0.5 * (0.3 if re.match(r"model\.\d+\.conv\d\.", name) else 1)
        state[name] = drawn
    save_file(state, path)
    return path


def _seen(size: int) -> Tensor:
    """What the network gets: a smooth picture with noise, black in a hole of a sixth of it, and the hole."""
    across = torch.linspace(0, 12, size)
    smooth = torch.stack([torch.outer(torch.sin(across + turn), torch.cos(across)) for turn in (0.0, 1.0, 2.0)])
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(size))
    hole = torch.zeros(1, size, size)
    hole[:, size // 3 : 2 * size // 3, size // 4 : 3 * size // 4] = 1
    return torch.cat([(0.4 * smooth + 0.5 * noise + 0.25).clamp(0, 1) * (1 - hole), hole])[None]


def _halves(kind: str, weights: Path) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Front and rear of facefix's or spandrel's network; features are one tensor."""
    if kind == "facefix":
        network = networks.load_lama(weights)
        return network.front, network.rear
    spandrel = importlib.import_module("spandrel")
    state = {f"generator.{name}": tensor for name, tensor in load_file(weights).items()}
    layers: Any = spandrel.ModelLoader().load_from_state_dict(state).model.eval().requires_grad_(False).model.model
    cut = next(index for index, layer in enumerate(layers) if type(layer).__name__ == "FFCResnetBlock")
    front, rear = nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:])
    local = Shape().local
    return lambda x: torch.cat(front(x), dim=1), lambda z: rear((z[:, :local], z[:, local:]))


def _step(rear: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """The gradient of one refinement step."""
    leaf = features.detach().clone().requires_grad_()
    [gradient] = torch.autograd.grad(rear(leaf).mean(), leaf)
    return gradient


# --- memory, in processes of their own -------------------------------------------------------------------------------


def _print_memory(size: int, arguments: argparse.Namespace, weights: Path) -> bool:
    if not Path("/proc/self/clear_refs").exists():
        print("  memory: not measured, as only Linux says what a process took at most")
        return True
    held = True
    for what in ("pass", *([] if arguments.no_steps else ["step"])):
        peaks = {}
        for kind in KINDS:
            command = [sys.executable, __file__, kind, what, str(size), str(weights), str(arguments.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[kind] = float(done.stdout.splitlines()[-1])
        ratio = peaks["spandrel"] / peaks["facefix"]
        print(
            f"  peak of a {what} beyond the weights: facefix {peaks['facefix']:.0f} MB "
            f"({peaks['facefix'] * 1e3 / size**2:.2f} kB a pixel)  spandrel {peaks['spandrel']:.0f} MB  {ratio:.1f}x"
        )
        held &= what == "pass" or ratio >= REQUIRED_MEMORY
    return held


def _alone(kind: str, what: str, size: int, weights: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    front, rear = _halves(kind, weights)
    picture = _seen(size)
    with torch.no_grad():
        small = front(_seen(64))
        rear(small)
        features = front(picture) if what == "step" else None
    _step(rear, small)
    before = _megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if features is not None:
        _step(rear, features)
    else:
        with torch.inference_mode():
            rear(front(picture))
    print(_megabytes("VmHWM") - before)


def _megabytes(entry: str) -> float:
    """What the system says of this process: VmRSS is what it holds, VmHWM what it held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024 / 1e6


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit("bench_inpaint: this part is run by `python scripts/bench.py inpaint`; --help shows its options there")
    _alone(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
