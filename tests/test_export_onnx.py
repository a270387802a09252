"""`scripts/export_onnx.py`: any GPEN becomes a graph that gives the network's own answers, for any number of faces."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mixing_gpen import of_pixels, saved

from facefix import FaceFix, Recipe, networks
from facefix.errors import UsageError, WeightsInvalid
from facefix.gpen import GPEN
from facefix.onnxfile import Graph
from facefix.weights import Store

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import export_onnx  # noqa: E402

pytestmark = pytest.mark.slow  # torch's exporter takes some five seconds a network


def small() -> GPEN:
    """A network of 16 to 32 px whose every tensor matters, but for a layer of zeros as facefix-lite-256 has some."""
    torch.manual_seed(1)
    model = GPEN(32, [8] * 4, in_size=16, style_dim=16, n_mlp=2)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.zeros_(model.get_parameter("generator.convs.0.conv.weight"))
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, float]]:
    """By name: the weight file, its graph, and the relative error that the script found."""
    folder = tmp_path_factory.mktemp("graphs")
    models = {"SR": small(), "published": of_pixels(np.diag([1.0, 0.5, 0.25]), size=16)}
    done = {}
    for name, model in models.items():
        source = saved(model, folder / f"{name}.pth")
        done[name] = (source, *export_onnx.export(str(source), folder / f"{name}.onnx", Store.default()))
    return done


@pytest.mark.parametrize("name", ["SR", "published"])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_graph_gives_the_networks_answer(
    exported: dict[str, tuple[Path, Path, float]], name: str, batch: int
) -> None:
    source, target, worst = exported[name]
    assert worst < 1e-4
    network, graph = networks.load(source), Graph(target, "cpu")
    assert (graph.architecture, graph.in_size, graph.out_size) == ("GPEN", network.in_size, network.out_size)
    pictures = (
        torch.rand(batch, 3, network.in_size, network.in_size, generator=torch.Generator().manual_seed(3)) * 2 - 1
    )
    wanted = network(pictures)
    assert float((graph(pictures) - wanted).norm() / wanted.norm()) < 1e-4
    assert wanted.std() > 0.01


def test_the_file_is_one_whole_valid_model_with_names(exported: dict[str, tuple[Path, Path, float]]) -> None:
    _, target, _ = exported["SR"]
    model = onnx.load(target, load_external_data=False)
    onnx.checker.check_model(model)
    assert {each.key: each.value for each in model.metadata_props} == {"architecture": "GPEN", "name": "SR"}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "SR.onnx", "SR.pth", "published.onnx", "published.pth",
    ]  # fmt: skip


def test_a_graph_restores_as_its_checkpoint_does(
    exported: dict[str, tuple[Path, Path, float]], portrait: np.ndarray
) -> None:
    source, target, _ = exported["published"]
    by_torch, by_graph = (
        FaceFix.load(
            Recipe(restorer=str(path), sharp_faces="restore", colour="free", precision="float32"), device="cpu"
        )(portrait)
        for path in (source, target)
    )
    assert by_graph.report.faces[0].outcome == "restored"
    assert np.abs(by_torch.photo.raster.astype(int) - by_graph.photo.raster).max() <= 1
    assert (by_graph.photo.raster != portrait).any()


def test_a_network_that_is_no_gpen_or_a_target_that_is_there_is_refused(
    exported: dict[str, tuple[Path, Path, float]], tmp_path: Path
) -> None:
    source, target, _ = exported["SR"]
    with pytest.raises(UsageError, match="exists already"):
        export_onnx.export(str(source), target, Store.default())
    with pytest.raises(WeightsInvalid, match="only GPEN is exported"):
        export_onnx.export(str(target), tmp_path / "again.onnx", Store.default())
    with pytest.raises(UsageError, match="expected a folder"):
        export_onnx.export(str(source), tmp_path / "no folder" / "a.onnx", Store.default())
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_wrong_is_not_kept(
    exported: dict[str, tuple[Path, Path, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = onnx.load(exported["published"][1])
    monkeypatch.setattr(export_onnx, "graph_of", lambda model, name: other)
    source = saved(of_pixels(np.eye(3), size=16), tmp_path / "own.pth")
    with pytest.raises(UsageError, match=r"expected a relative error below 0\.0001, got "):
        export_onnx.export(str(source), tmp_path / "own.onnx", Store.default())
    assert [path.name for path in tmp_path.iterdir()] == ["own.pth"]


def test_the_script_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    script = Path(export_onnx.__file__)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "none.pth"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("export_onnx: ")
    assert len(done.stderr.splitlines()) == 1
