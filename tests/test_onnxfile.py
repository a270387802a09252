"""An ONNX graph is read for what it takes and gives, run with any number of faces, or refused in one line."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facefix import FaceFix, Recipe, networks
from facefix.errors import DeviceError, WeightsInvalid
from facefix.onnxfile import Graph, is_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def written(
    path: Path,
    *,
    taken: tuple[object, ...] = ("batch", 3, 32, 32),
    given: tuple[object, ...] = ("batch", 3, 32, 32),
    steps: list[tuple[str, list[str], str]] | None = None,
    kind: int = 1,
    architecture: str = "",
    name: str = "answer",
) -> Path:
    """A graph of few steps from `pictures` to `answer`; without any it copies."""
    steps = steps or [("Identity", ["pictures"], "answer")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(step, sources, [made], name=name) for step, sources, made in steps],
        "graph",
        [onnx.helper.make_tensor_value_info("pictures", kind, taken)],
        [onnx.helper.make_tensor_value_info("answer", kind, given)],
        [onnx.helper.make_tensor("half", kind, [1], [0.5])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    if architecture:
        onnx.helper.set_model_props(model, {"architecture": architecture})
    onnx.save(model, path)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(WeightsInvalid) as caught:
        networks.load(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.isprintable()
    return caught.value.problem


@pytest.mark.parametrize("kind", [1, 10], ids=["float32", "float16"])
def test_sizes_come_from_the_graph_and_numbers_go_through_it(tmp_path: Path, kind: int) -> None:
    network = networks.load(written(tmp_path / "net.pth", steps=[("Mul", ["pictures", "half"], "answer")], kind=kind))
    assert (network.architecture, network.in_size, network.out_size) == ("ONNX", 32, 32)
    pictures = torch.rand(3, 3, 32, 32) * 2 - 1
    answer = network(pictures)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, pictures / 2, atol=1e-3 if kind == 10 else 0, rtol=0)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        network(torch.zeros(1, 3, 16, 16))


def test_a_graph_of_one_face_or_of_two_at_a_time_is_run_as_often_as_needed(tmp_path: Path) -> None:
    pictures = torch.rand(3, 3, 32, 32)
    for batch in (1, 2):
        shape = (batch, 3, 32, 32)
        graph = Graph(written(tmp_path / f"{batch}.onnx", taken=shape, given=shape), "cpu")
        assert torch.equal(graph(pictures), pictures)


def test_a_graph_that_enlarges_has_two_sizes(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Resize", ["pictures", "", "by"], ["answer"], mode="nearest")
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [onnx.helper.make_tensor_value_info("pictures", 1, ("batch", 3, 32, 32))],
        [onnx.helper.make_tensor_value_info("answer", 1, ("batch", 3, 64, 64))],
        [onnx.helper.make_tensor("by", 1, [4], [1, 1, 2, 2])],
    )
    path = tmp_path / "twice.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    network = networks.load(path)
    assert (network.in_size, network.out_size) == (32, 64)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 64, 64)


def test_gpen_is_known_by_what_the_graph_says_or_by_its_names(tmp_path: Path) -> None:
    assert Graph(written(tmp_path / "said.onnx", architecture="GPEN"), "cpu").architecture == "GPEN"
    assert Graph(written(tmp_path / "shown.onnx", name="/generator/to_rgbs.3/conv/Conv"), "cpu").architecture == "GPEN"
    assert Graph(written(tmp_path / "GPEN-BFR-512.onnx"), "cpu").architecture == "ONNX"


def test_a_graph_restores_by_its_path_and_one_that_copies_changes_nothing(tmp_path: Path, portrait: np.ndarray) -> None:
    side = ("batch", 3, 256, 256)
    path = written(tmp_path / "copies.onnx", taken=side, given=side, architecture="GPEN")
    fix = FaceFix.load(Recipe(restorer=str(path), sharp_faces="restore", colour="free"), device="cpu")
    result = fix(portrait)
    [note] = result.report.faces
    assert (note.outcome, note.restorer, note.size) == ("restored", "copies", 256)
    assert fix.restorers.take(256).template.name == "gpen"
    assert np.abs(result.photo.raster.astype(int) - portrait).max() <= 1
    assert set(result.report.weights) == {"copies"}


def test_what_is_another_network_is_named_by_what_it_takes_and_gives(tmp_path: Path) -> None:
    path = written(tmp_path / "gray.onnx", taken=("batch", 1, 32, 32), given=("batch", 1, 32, 32))
    assert "is another network: it takes (batch, 1, 32, 32) and gives (batch, 1, 32, 32); expected" in refusal(path)
    wide = written(tmp_path / "wide.onnx", taken=("batch", 3, 32, 48), given=("batch", 3, 32, 48))
    assert "is another network" in refusal(wide)
    free = written(tmp_path / "free.onnx", taken=("batch", 3, "h", "w"), given=("batch", 3, "h", "w"))
    assert "is another network: it takes (batch, 3, h, w)" in refusal(free)
    whole = written(tmp_path / "whole.onnx", kind=6)
    assert "is another network" in refusal(whole)


def test_the_face_detector_is_no_restorer() -> None:
    from facefix.weights import Store

    path = Store.default().require("centerface")[1]
    assert is_onnx(path)
    assert "is another network: it takes (10, 3, 32, 32) and gives" in refusal(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.onnx").read_bytes()
    cut, page, empty, text = (tmp_path / f"{name}.onnx" for name in ("cut", "page", "empty", "text"))
    cut.write_bytes(whole[:-40])
    assert "is a damaged ONNX file" in refusal(cut)
    page.write_bytes(b"<!DOCTYPE html><html></html>")
    assert "is a web page" in refusal(page)
    empty.write_bytes(b"")
    assert "is empty" in refusal(empty)
    text.write_bytes(b"no network at all")
    assert "is a text file; expected a GPEN, GFPGAN or RestoreFormer checkpoint (.pth, .pt, .safetensors or .onnx)" in (
        refusal(text)
    )


def test_content_decides_and_not_the_name(tmp_path: Path, tiny_gpen_file: Path) -> None:
    misnamed = tmp_path / "tensors.onnx"
    misnamed.write_bytes(tiny_gpen_file.read_bytes())
    assert not is_onnx(misnamed)
    assert networks.load(misnamed).architecture == "GPEN"
    assert not is_onnx(tmp_path / "none.onnx")
    header = tmp_path / "header.safetensors"
    header.write_bytes((0x0000000000120308).to_bytes(8, "little") + b"{")
    assert not is_onnx(header)


def test_without_onnx_runtime_the_way_to_get_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    problem = refusal(written(tmp_path / "net.onnx"))
    assert problem == "is an ONNX graph, which needs `pip install 'facefix[onnx]'`"


def test_devices_and_precisions_that_there_are_not(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx")
    with pytest.raises(DeviceError, match=r"net\.onnx: an ONNX file computes as it was exported"):
        networks.load(path, precision="bfloat16")
    there = onnxruntime.get_available_providers()
    for device in ("mps", "cuda") if "CUDAExecutionProvider" not in there else ("mps",):
        with pytest.raises(DeviceError, match=f"device {device}"):
            Graph(path, device)
    assert networks.load(path, device="auto", precision="auto").device == torch.device("cpu")


def test_a_graph_that_fails_while_it_runs_says_so_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "fails.onnx", steps=[("Reshape", ["pictures", "shape"], "answer")])
    model = onnx.load(path)
    model.graph.initializer.append(onnx.helper.make_tensor("shape", 7, [4], [7, 3, 32, 32]))
    onnx.save(model, path)
    with pytest.raises(DeviceError, match="ONNX Runtime could not run the graph") as caught:
        Graph(path, "cpu")(torch.zeros(1, 3, 32, 32))
    assert "\n" not in str(caught.value)
