"""Imports run only downward, and `import facefix` is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import facefix

HOUSE = Path(facefix.__file__).parent
LAYERS = [
    {"errors", "types", "recipe"},
    {
        "imagefile", "align", "mask", "tone", "blend", "measures", "tiles", "sheet",
        "weights", "weightnames", "memory", "download",
    },
    {
        "runtime", "gpen", "gpen_fast", "gpen_shape", "gpen_steps", "winograd", "ffc", "ffc_fast",
        "archivefile", "statefile",
        "onnxfile", "networks", "detect",
        "detectors", "identity", "parse", "restore", "upscale", "inpaint",
    },
    {"given", "pipeline", "inpainting", "trades"},
    {"jobs"},
    {
        "cli", "cli_parts", "cli_photos", "cli_archive", "cli_review", "cli_weights", "cli_inpaint", "cli_trades",
        "cli_web", "web", "integrations",
    },
]  # fmt: skip
# Within one layer only these may meet: importer -> imported.
BESIDE = {
    "recipe": {"errors", "types"},
    "types": {"errors"},
    "blend": {"align"},
    "measures": {"align", "blend"},
    "weights": {"download", "memory", "weightnames"},
    "weightnames": {"download"},
    "gpen": {"gpen_fast", "gpen_shape"},
    "gpen_fast": {"gpen_shape", "gpen_steps"},
    "gpen_steps": {"gpen_shape", "winograd"},
    "ffc_fast": {"ffc", "winograd"},
    "statefile": {"archivefile"},
    "networks": {
        "gpen", "gpen_fast", "gpen_shape", "ffc", "ffc_fast", "archivefile", "statefile", "onnxfile", "runtime",
    },
    "detect": {"detectors"},
    "detectors": {"runtime", "networks"},
    "identity": {"detectors"},
    "parse": {"runtime", "networks"},
    "restore": {"runtime", "networks"},
    "upscale": {"runtime", "networks"},
    "inpaint": {"runtime", "networks", "ffc", "statefile", "upscale", "detect", "detectors"},
    "pipeline": {"given"},
    "inpainting": {"given", "pipeline"},
    "trades": {"given", "pipeline"},
    "cli": {
        "cli_parts", "cli_photos", "cli_archive", "cli_review", "cli_weights", "cli_inpaint", "cli_trades", "cli_web",
    },
    "cli_photos": {"cli_parts"},
    "cli_inpaint": {"cli_parts"},
    "cli_archive": {"cli_parts"},
    "cli_review": {"cli_parts"},
    "cli_trades": {"cli_parts"},
    "cli_web": {"cli_parts", "web"},
}  # fmt: skip
PUBLIC = {"__init__", "__main__"}
TORCH = {"torch", "torchvision", "facexlib", "spandrel", "diffusers"}


def imported(path: Path, *, top_only: bool = False) -> set[str]:
    """Names of modules that the file imports; `facefix.x` as it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = str(node.module)
            if node.level:
                package = ["facefix", *path.relative_to(HOUSE).parts[: -node.level]]
                base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"facefix.{alias.name}" for alias in node.names} if base == "facefix" else {base}
    return names


def room(path: Path) -> str:
    """The module's name; for a file of a package, the package's."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    found = [number for number, rooms in enumerate(LAYERS) if name in rooms]
    assert found, f"{name} has no layer: write it into LAYERS"
    return found[0]


MODULES = sorted(path for path in HOUSE.rglob("*.py") if room(path) not in PUBLIC)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_run_downward(path: Path) -> None:
    here = room(path)
    own = {name.split(".")[1] for name in imported(path) if name.startswith("facefix.")}
    for name in own - {"__version__", here}:
        down = layer(name) < layer(here) or name in BESIDE.get(here, set())
        assert down, f"{here} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_only_engines_import_torch_at_the_top(path: Path) -> None:
    if layer(room(path)) != 2:
        assert not {name.split(".")[0] for name in imported(path, top_only=True)} & TORCH


def test_importing_facefix_or_its_command_loads_neither_torch_nor_opencv() -> None:
    code = "import sys, facefix, facefix.cli; sys.exit(', '.join({'torch', 'cv2'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names_are_there_and_no_others() -> None:
    assert dir(facefix) == sorted(facefix.__all__)
    for name in facefix.__all__:
        assert getattr(facefix, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'torch'"):
        _ = facefix.torch
