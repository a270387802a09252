"""The `gpen` part of the bench: facefix's GPEN beside the published code and ONNX Runtime on its export.

All three get the same made weights and the same picture, in one process, their repeats interleaved; the figure is the
median. Peak memory and start-up are measured in processes of their own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facefix import networks
from facefix.gpen import GPEN
from facefix.gpen_shape import Shape

PUBLISHED_WIDTHS = {256: (1, 0.5)}
_REST_SECONDS = 0.5  # ONNX Runtime's threads go on spinning after a run, and would be counted against the next
REQUIRED = {
    (512, "facefix float32"): {"published": 3.0, "onnxruntime": 1.2},
    (512, "facefix bfloat16"): {"published": 6.5, "onnxruntime": 2.5},
    (2048, "facefix float32"): {"published": 4.5, "onnxruntime": 1.0},
    (2048, "facefix bfloat16"): {"published": 9.0, "onnxruntime": 1.7},
}

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Run = Callable[[Tensor], Tensor]


def main(argv: Sequence[str]) -> int:
    """Measure the GPEN network: time, memory, start-up, exactness; 1 when a required ratio did not hold."""
    parser = argparse.ArgumentParser(prog="bench.py gpen", description=main.__doc__)
    parser.add_argument("--published", type=Path, metavar="DIR", help="face_model folder of the published repository")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 2048], metavar="PX")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="cpu: on a busy machine, with --threads 1"
    )
    parser.add_argument("--no-onnxruntime", action="store_true", help="leave ONNX Runtime out")
    parser.add_argument("--no-bfloat16", action="store_true", help="leave bfloat16 out (slow without hardware for it)")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory and start-up out")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep weights and exports here (default: a temporary folder)"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        held = [_measure(size, arguments, work) for size in arguments.sizes]
    return 0 if all(held) else 1


# --- one size --------------------------------------------------------------------------------------------------------


def _measure(size: int, arguments: argparse.Namespace, work: Path) -> bool:
    weights = _weights_file(size, work)
    picture = _picture(size)
    runs: dict[str, Run] = {"facefix float32": networks.load(weights)}
    if not arguments.no_bfloat16:
        runs["facefix bfloat16"] = networks.load(weights, precision="bfloat16")
    if arguments.published:
        published = _published(size, weights, arguments.published)
        runs["published"] = lambda x: published(x)[0]
        if not arguments.no_onnxruntime:
            runs["onnxruntime"] = _onnxruntime(_export(size, published, work), arguments.threads)
    outputs, seconds, rate = _interleaved(runs, picture, arguments.repeats, CLOCKS[arguments.clock])
    floor = _gigaflops(GPEN.published(size, *PUBLISHED_WIDTHS.get(size, (2, 1))).shape) / rate
    how = f"{arguments.threads} threads, {arguments.clock} clock, median of {arguments.repeats} interleaved repeats"
    print(f"\nGPEN {size} px, {how}")
    print(f"  floor {floor:.2f} s: {floor * rate:.0f} GFLOP at the {rate:.0f} GFLOP/s of a plain 3x3 convolution")
    held = True
    for name, median in seconds.items():
        line = f"  {name:18} {median:7.3f} s"
        for other in ("published", "onnxruntime"):
            if other in seconds and name.startswith("facefix"):
                ratio = seconds[other] / median
                line += f"  {ratio:5.2f}x {other}"
                held &= ratio >= REQUIRED.get((size, name), {}).get(other, 0)
        if name != "facefix float32":
            line += f"  {_psnr(outputs[name], outputs['facefix float32']):6.1f} dB beside facefix float32"
        print(line, flush=True)
    if not arguments.no_memory:
        _print_processes(size, weights, arguments, work)
    return held


def _interleaved(
    runs: dict[str, Run], picture: Tensor, repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, Tensor], dict[str, float], float]:
    """Outputs, median seconds, and the rate of a plain convolution in GFLOP/s, measured turn by turn with rests."""
    outputs, times, rates = {}, {name: [] for name in runs}, []  # type: ignore[var-annotated]
    with torch.inference_mode():
        for name, compute in runs.items():
            outputs[name] = compute(picture)
        for _ in range(repeats):
            rates.append(_convolution_rate(clock))
            for name, compute in runs.items():
                time.sleep(_REST_SECONDS)
                started = clock()
                compute(picture)
                times[name].append(clock() - started)
    return outputs, {name: statistics.median(each) for name, each in times.items()}, statistics.median(rates)


def _convolution_rate(clock: Callable[[], float]) -> float:
    """GFLOP/s of a plain 3x3 convolution with 256 channels at 128 px."""
    values = torch.ones(1, 256, 128, 128).to(memory_format=torch.channels_last)
    weight = torch.ones(256, 256, 3, 3).to(memory_format=torch.channels_last)
    F.conv2d(values, weight, padding=1)
    started = clock()
    F.conv2d(values, weight, padding=1)
    return 2 * 128**2 * 256**2 * 9 / (clock() - started) / 1e9


def _gigaflops(shape: Shape) -> float:
    """Operations of the network's convolutions as the paper states them, two for each multiplication, in GFLOP."""
    widths = [c + n for c, n in zip(shape.channels, shape.injected, strict=True)]
    total = 16 * widths[0] * (9 * shape.channels[0] * shape.channels[0] / widths[0] + 3)
    for level in range(1, len(widths)):
        pixels = (4 << level) ** 2
        total += pixels / 4 * 9 * widths[level - 1] * shape.channels[level]
        total += pixels * (9 * widths[level] * shape.channels[level] + 3 * widths[level])
    steps = shape.in_size.bit_length() - 2
    for level in range(1, steps):
        total += (2 << level) ** 2 * 9 * shape.injected[level] * shape.injected[level - 1]
    return 2 * (total + shape.in_size**2 * 3 * shape.injected[steps - 1]) / 1e9


def _psnr(one: Tensor, other: Tensor) -> float:
    """PSNR of two pictures clipped to -1..1, dB."""
    error = (one.float().clamp(-1, 1) - other.float().clamp(-1, 1)).square().mean().item()
    return 10 * math.log10(4 / error) if error else math.inf


# --- weights, pictures, the others -----------------------------------------------------------------------------------


def _weights_file(size: int, work: Path) -> Path:
    """A checkpoint of the published layout with made weights, each drawn with a seed of its name."""
    path = work / f"made-{size}.pth"
    if path.exists():
        return path
    multiplier, narrow = PUBLISHED_WIDTHS.get(size, (2, 1))
    with torch.device("meta"):
        shapes = GPEN.published(size, multiplier, narrow).shape
    kernels = {"ecd": 1 / 64, "gen": 4 / 64}
    state = {}
    for name, shape in GPEN.layout(shapes).items():
        drawn = torch.from_numpy(
            np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, np.float32)
        )
        if name.endswith(".kernel"):
            row = torch.tensor([1.0, 3.0, 3.0, 1.0])
            drawn = torch.outer(row, row) * kernels[name[:3]]
        elif name.endswith("noise.weight"):
            drawn = 0.5 + 0.1 * drawn
        elif name.endswith("bias"):
            drawn = 0.1 * drawn + (1 if name.endswith("modulation.bias") else 0)
        elif ".style." in name:
            drawn = 100 * drawn
        state[name] = drawn
    torch.save(state, path)
    return path


def _picture(size: int) -> Tensor:
    """A smooth (1, 3, size, size) picture with noise, -1..1."""
    across = torch.linspace(0, 12, size)
    smooth = torch.stack([torch.outer(torch.sin(across + turn), torch.cos(across)) for turn in (0.0, 1.0, 2.0)])
    noise = torch.randn(3, size, size, generator=torch.Generator().manual_seed(size))
    return (0.6 * smooth + 0.15 * noise).clamp(-1, 1)[None]


def _published(size: int, weights: Path, folder: Path) -> Any:
    """The published network, which takes a batch and gives a tuple."""
    sys.path.insert(0, str(folder))
    gpen_model = importlib.import_module("gpen_model")
    multiplier, narrow = PUBLISHED_WIDTHS.get(size, (2, 1))
    model = gpen_model.FullGenerator(size, 512, 8, multiplier, narrow=narrow, device="cpu")
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def _export(size: int, published: Any, work: Path) -> Path:
    """The published network as an ONNX file."""
    path = work / f"published-{size}.onnx"
    if not path.exists():
        torch.onnx.export(
            published, (_picture(size),), str(path), dynamo=True, external_data=False, input_names=["x"], verbose=False
        )
    return path


def _onnxruntime(path: Path, threads: int) -> Run:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


# --- processes of their own ------------------------------------------------------------------------------------------


def _print_processes(size: int, weights: Path, arguments: argparse.Namespace, work: Path) -> None:
    kinds = ["facefix"]
    if arguments.published:
        kinds += ["published"] + ([] if arguments.no_onnxruntime else ["onnxruntime"])
    for kind in kinds:
        command = [sys.executable, __file__, kind, str(size), str(weights), str(arguments.threads)]
        command.append(str(arguments.published if kind == "published" else work / f"published-{size}.onnx"))
        started = time.monotonic()
        command.append(repr(started))
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        wall = time.monotonic() - started
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"  {kind:12} alone: peak {found['peak_gb']:.2f} GB; process {wall:.2f} s, of it imports "
            f"{found['imports']:.2f}, loading {found['loading']:.2f}, first face {found['first']:.2f}, "
            f"second {found['second']:.2f}",
            flush=True,
        )


def _peak_gb() -> float:
    """The most memory that this process held; on Linux without what its parent held before it, as rusage has it."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(peak.split()[1]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _alone(kind: str, size: int, weights: Path, threads: int, where: Path, started: float) -> None:
    torch.set_num_threads(threads)
    imported = time.monotonic()
    compute: Run
    if kind == "facefix":
        compute = networks.load(weights)
    elif kind == "published":
        model = _published(size, weights, where)
        compute = lambda x: model(x)[0]  # noqa: E731
    else:
        compute = _onnxruntime(where, threads)
    loaded = time.monotonic()
    picture = _picture(size)
    with torch.inference_mode():
        compute(picture)
        first = time.monotonic()
        compute(picture)
    print(
        json.dumps(
            {
                "peak_gb": _peak_gb(),
                "imports": imported - started,
                "loading": loaded - imported,
                "first": first - loaded,
                "second": time.monotonic() - first,
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit("bench_gpen: this part is run by `python scripts/bench.py gpen`; --help shows its options there")
    _alone(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]), float(sys.argv[6]))
