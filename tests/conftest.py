"""What several test files share: real pictures, and small real networks with made weights."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import made_networks
import made_store
import numpy as np
import pytest
import torch
import web_server
from PIL import Image
from safetensors.torch import save_file
from skimage.data import astronaut

from facefix import Inpainter, Recipe, cli
from facefix.gpen import GPEN
from facefix.weights import Store

gc.disable()  # a fifth of the time that importing all tests takes goes into looking for garbage among what stays
atexit.register(gc.unfreeze)  # or Triton complains of what is left


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


SHARED = Path(__file__).parents[1].parent / "shared"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def facefix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command as a shell would run it, in this process: arguments in, exit code, stdout and stderr out."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["facefix", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code
        printed = capsys.readouterr()
        return Done(int(code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def portrait() -> np.ndarray:
    """(512, 512, 3) uint8 with one face, about 100 px wide: NASA's public-domain portrait of Eileen Collins."""
    return astronaut().copy()


@pytest.fixture
def portrait_file(tmp_path: Path, portrait: np.ndarray) -> Path:
    path = tmp_path / "portrait.png"
    Image.fromarray(portrait).save(path, compress_level=1)
    return path


@pytest.fixture(scope="session")
def tiny_gpen_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 64 px GPEN with the published names and made weights; what it draws is noise, but it is the real network."""
    network = GPEN.published(64, 1, 0.125)
    state = {}
    for name, tensor in network.state_dict().items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        drawn = torch.from_numpy(rng.standard_normal(tuple(tensor.shape)).astype(np.float32))
        state[name] = tensor.clone() if name.endswith(".kernel") else drawn * (0.1 if "bias" in name else 1.0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def state() -> made_networks.State:
    """The tensors of a GPEN that is smaller still."""
    return made_networks.made(made_networks.small())


@pytest.fixture(scope="session")
def face() -> np.ndarray:
    """(200, 150, 3) uint8 with one face."""
    return astronaut()[0:200, 145:295].copy()


@pytest.fixture
def scans(tmp_path: Path, face: np.ndarray) -> Path:
    """Four different photos in a tree, two of them with a face."""
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(face).save(folder / "face.jpg", quality=92)
    Image.fromarray(face[:, ::-1].copy()).save(folder / "sub" / "turned.png")
    for number in range(2):
        Image.fromarray(np.full((40, 50, 3), 60 + 40 * number, np.uint8)).save(folder / "sub" / f"plain{number}.png")
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(0, 800_000_000_123_456_789))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The true catalogue over two empty folders."""
    return made_store.empty_store(tmp_path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a real server, and the folder whose files it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    with made_store.serving(folder) as address:
        yield address, folder


@pytest.fixture
def shop(store: Store, served: tuple[str, Path]) -> Store:
    """A store of four small records: free or not, with a published digest or without."""
    return dataclasses.replace(store, catalogue=made_store.small_records(*served))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub to reach, nor anything that its cache happens to hold."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="session")
def sd_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of Stable Diffusion and SDXL, for inpainting or not, by name."""
    tiny, engines = pytest.importorskip("tiny_diffusion"), pytest.importorskip("tiny_engines")
    parent = tmp_path_factory.mktemp("models")
    return {name: tiny.save(parent / name, channels, xl=xl) for name, (channels, xl) in engines.MODELS.items()}


@pytest.fixture(scope="session")
def sd_engines(sd_folders: dict[str, Path]) -> dict[str, Any]:
    """The engines of those models."""
    engines = pytest.importorskip("tiny_engines")
    return {name: engines.loaded(folder) for name, folder in sd_folders.items()}


@pytest.fixture(scope="session")
def telea() -> Inpainter:
    """What fills holes without weights, and restores the faces in them."""
    return Inpainter.load(Recipe(engine="cv2"), device="cpu")


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Path]:
    """What the code in a test's hostile file would make, and must not have made."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.fixture
def shared() -> Path:
    """The folder of test data beside the checkout; tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared test data")
    return SHARED


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of the test alone: Gradio's client leaves an empty folder there for each file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[web_server.Served]:
    """`facefix web` with an input and an output folder, `in` and `out` beside its temporary one, and low limits."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("web")
    (folder / "in").mkdir()
    folders = ("--input-dir", folder / "in", "--output-dir", folder / "out")
    limits = ("--max-megabytes", 3, "--max-pixels", 4_000_000)
    with web_server.served(folder, *folders, *limits, "--device", "cpu", ctrl_c=2) as served:
        yield served


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, for all tests of a module; each opens the page anew, which is a visit of its own."""
    with web_server.chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver
