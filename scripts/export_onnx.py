"""Writes a GPEN network as an ONNX graph that takes any number of faces at once, and checks it.

    python scripts/export_onnx.py gpen-bfr-512                     # a name of the store: gpen-bfr-512.onnx
    python scripts/export_onnx.py own/net.pth -o own/net.onnx

The graph is the plain form of `facefix.gpen` with the file's numbers, in float32: (B, 3, S, S) RGB of -1..1 in, the
same out. It is run on ONNX Runtime for one and for three faces and compared with the network that facefix itself runs;
where they differ by more than one part in ten thousand nothing is kept. Use it by `facefix restore --restorer FILE`.

Needs `pip install 'facefix[onnx]' onnx onnxscript`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from pathlib import Path

import onnx
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from facefix import networks
from facefix.errors import FacefixError, UsageError, WeightsInvalid
from facefix.gpen import GPEN
from facefix.onnxfile import Graph
from facefix.weights import Store

WORST = 1e-4
BATCHES = (1, 3)
OPSET = 18


class Plain(nn.Module):
    """The network as a graph sees it: its plain form, and the noise of an SR variant as constants."""

    def __init__(self, model: GPEN) -> None:
        super().__init__()
        self.model = model
        drawn = model.noise_like(torch.zeros(1, 3, model.in_size, model.in_size))
        for number, noise in enumerate(drawn):
            self.register_buffer(f"drawn{number}", noise)
        self.count = len(drawn)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, in_size, in_size) -> (B, 3, size, size)."""
        noise = [self.get_buffer(f"drawn{number}") for number in range(self.count)]
        return self.model.plain_forward(pictures, noise)


def graph_of(model: GPEN, name: str) -> onnx.ModelProto:
    """The network's graph, with its architecture and name in its metadata."""
    pictures = torch.zeros(2, 3, model.in_size, model.in_size)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter warns of itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            Plain(model).eval(),
            (pictures,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pictures"],
            output_names=["faces"],
            dynamic_shapes={"pictures": {0: torch.export.Dim("batch", min=1)}},
            optimize=False,  # it would leave out + 1e-8 as if that were + 0, and layers of zeros gave NaN
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch made no graph")
    made = program.model_proto
    optimizer.fold_constants(made)
    optimizer.remove_unused_nodes(made)
    onnx.helper.set_model_props(made, {"architecture": "GPEN", "name": name})
    return made


def difference(network: networks.Network, graph: Graph, batch: int) -> float:
    """The relative error of the graph's answer for so many faces of noise and gradients."""
    side = network.in_size
    draw = torch.Generator().manual_seed(batch)
    ramp = torch.linspace(-1, 1, side).expand(batch, 3, side, side)
    pictures = 0.5 * ramp + 0.5 * torch.rand(batch, 3, side, side, generator=draw) - 0.25
    wanted = network(pictures)
    return float((graph(pictures) - wanted).norm() / wanted.norm())


def export(name_or_path: str, target: Path | None, store: Store) -> tuple[Path, float]:
    """Where the graph now lies, and its largest relative error.

    Raises:
        WeightsError: the file is missing, damaged, or no GPEN.
        UsageError: the target exists already or has no folder, or the graph does not compute what the network does.
    """
    weight, path = store.require(name_or_path)
    network = networks.load(path, device="cpu", precision="float32")
    if not isinstance(network.body, GPEN):
        raise WeightsInvalid(path, f"expected a GPEN network, got {network.architecture}; only GPEN is exported")
    target = target or Path(f"{weight.name}.onnx")
    if target.exists():
        raise UsageError(f"{target} exists already; name another with -o")
    if not target.parent.is_dir():
        raise UsageError(f"{target}: expected a folder to write it in, got none; make it, or name another with -o")
    part = target.with_name(f".{target.name}.part")
    try:
        onnx.save(graph_of(network.body, weight.name), part)
        graph = Graph(part, "cpu")
        worst = max(difference(network, graph, batch) for batch in BATCHES)
        if not worst < WORST:
            raise UsageError(f"{path}: expected a relative error below {WORST:g}, got {worst:.2g}; nothing was written")
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return target, worst


def main(arguments: list[str]) -> int:
    """Reads the options, exports, and says what came of it."""
    parser = argparse.ArgumentParser(description="Write a GPEN network as an ONNX graph, checked.")
    parser.add_argument("network", help="a name as in `facefix weights list`, or a file")
    parser.add_argument("-o", "--out", type=Path, help="the file to write; NAME.onnx without it")
    options = parser.parse_args(arguments)
    try:
        target, worst = export(options.network, options.out, Store.default())
    except FacefixError as error:
        print(f"export_onnx: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, relative error {worst:.1e} for {BATCHES} faces")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
