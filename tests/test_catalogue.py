"""The catalogue is whole, its licences are told, and a wheel carries it."""

import itertools
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from made_store import CATALOGUE, RECORDS, put

from facefix import weightnames, weights
from facefix.types import Weight

KINDS = {
    "restorer",
    "colorizer",
    "face-inpainter",
    "seg2face",
    "detector",
    "recogniser",
    "parser",
    "upscaler",
    "inpainter",
}
LOADERS = {"gpen", "spandrel", "facexlib", "yunet", "sface", "centerface", "lama", "mat"}
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("weight", CATALOGUE, ids=lambda weight: weight.name)
def test_record_is_whole(weight: Weight) -> None:
    assert weight.files
    assert all(re.fullmatch(r"[\w.+-]+\.(pth|pt|onnx|safetensors)", name) for name in weight.files)
    assert weight.kind in KINDS
    assert weight.loader in LOADERS
    assert weight.licence
    assert weight.source
    assert weight.urls
    assert all(re.match(r"https://|package:\w+/", url) for url in weight.urls)
    assert weight.sha256 is None or re.fullmatch("[0-9a-f]{64}", weight.sha256)
    assert weight.md5 is None or re.fullmatch("[0-9a-f]{32}", weight.md5)
    assert weight.sha256 is None or weight.md5 is None
    assert weight.bytes is None or weight.bytes > 0
    if weight.bytes and weight.tensor_bytes:
        assert 0 < weight.bytes - weight.tensor_bytes < weights.CONTAINER_BYTES
    if weight.kind == "restorer":
        assert weight.template in {"gpen", "ffhq"}
        assert weight.size in {256, 512, 1024, 2048}
    assert weight.commercial == (not re.search("NC|non-commercial", weight.licence))


def test_no_two_records_share_a_name() -> None:
    names = [weightnames.key_of(name) for weight in CATALOGUE for name in {weight.name, *weight.aliases}]
    assert len(names) == len(set(names))


def test_licences_are_told_where_people_read_them() -> None:
    text = (ROOT / "weights" / "LICENCES.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    assert rows.keys() == RECORDS.keys()
    for name, weight in RECORDS.items():
        assert f"| {weight.licence} | {'yes' if weight.commercial else 'no'} |" in rows[name]


def test_tensor_bytes_tell_the_published_sizes_apart() -> None:
    sizes = sorted({weight.tensor_bytes for weight in CATALOGUE if weight.tensor_bytes})
    assert all(b - a > weights.CONTAINER_BYTES for a, b in itertools.pairwise(sizes))


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not run from a checkout")
def test_a_wheel_carries_the_catalogue_and_the_small_network(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "facefix", tree / "facefix", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for name in ("LICENSE", "README.md", "weights/LICENCES.md"):
        put(tree / name, b"words")
    put(tree / "weights" / "facefix-lite-256.safetensors", b"the small network")
    put(tree / "weights" / "GPEN-BFR-512.pth", b"not ours to hand on")
    command = "import hatchling.build; print(hatchling.build.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", command], cwd=tree, check=True, capture_output=True)
    with zipfile.ZipFile(next(tree.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        assert {"facefix/weights.toml", "facefix/py.typed", "facefix/weights_data/LICENCES.md"} <= names
        assert wheel.read("facefix/weights_data/facefix-lite-256.safetensors") == b"the small network"
    assert not any("GPEN-BFR" in name for name in names)
