"""`facefix colorize`, `facefix seg2face` and `--task selfie`, on published layouts with made weights."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Command
from mixing_gpen import mixing, of_pixels, saved
from PIL import Image

from facefix.trades import PALETTE


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    saved(of_pixels(np.diag([1.0, 0.75, 0.55])), folder / "GPEN-Colorization-1024.pth")
    saved(mixing(), folder / "GPEN-Seg2face-512.pth")
    return folder


@pytest.fixture
def facefix(facefix: Command, monkeypatch: pytest.MonkeyPatch, shop: Path) -> Command:
    """The command where the trades' weights are there and accepted."""
    monkeypatch.setenv("FACEFIX_WEIGHTS", str(shop))
    monkeypatch.setenv("FACEFIX_ACCEPT", "gpen-colorization-1024,gpen-seg2face-512,gpen-bfr-1024,gpen-bfr-2048")
    return facefix


@pytest.fixture
def gray_file(tmp_path: Path, portrait: np.ndarray) -> Path:
    path = tmp_path / "grandma.png"
    Image.fromarray(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY)).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture).astype(int)


def test_only_the_faces_are_coloured_and_it_says_so(facefix: Command, gray_file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = facefix("colorize", gray_file, "--report", report, "--device", "cpu")
    target = tmp_path / "grandma.facefix.png"
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{target}: 1 of 1 faces coloured, all else as it was, in ")
    made = pixels(target)
    assert (made[100:140, 205:245, 0] - made[100:140, 205:245, 2]).mean() > 20
    assert np.ptp(made[300:], axis=2).max() == 0
    written = json.loads(report.read_text())
    assert written["faces"][0]["outcome"] == "restored"
    assert written["recipe"]["chroma"] == 1.0
    assert "strength" not in written["recipe"]
    assert set(written["weights"]) == {"gpen-colorization-1024"}
    again = facefix("colorize", gray_file)
    assert (again.code, "exists already" in again.err) == (1, True)


def test_chroma_aligned_and_several_photos(facefix: Command, gray_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wall = tmp_path / "wall.png"
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(wall)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    report = tmp_path / "all.jsonl"
    done = facefix("colorize", gray_file, broken, wall, "-o", out, "--chroma", "0.5", "--report", report)
    assert done.code == 1
    assert sorted(path.name for path in out.iterdir()) == ["grandma.png", "wall.png"]
    assert f"{out / 'wall.png'}: no face found, and nothing else is coloured, in " in done.out
    assert [line for line in done.err.splitlines() if "broken.png" in line] == done.err.splitlines()
    first, second, third = (json.loads(line) for line in report.read_text().splitlines())
    assert first["recipe"]["chroma"] == 0.5
    assert "broken.png" in second["error"]
    assert third["faces"] == []
    assert facefix("colorize", wall, "-o", tmp_path / "whole.png", "--aligned").code == 0
    assert np.ptp(pixels(tmp_path / "whole.png"), axis=2).min() > 10
    both = facefix("colorize", wall, "--aligned", "--mask", wall)
    assert (both.code, both.err) == (
        2,
        "facefix: expected --aligned or --mask, got both; all of an aligned face is coloured\n",
    )


def test_a_recipe_file_and_wrong_values(facefix: Command, gray_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("chroma = 0.25\n")
    report = tmp_path / "report.json"
    assert facefix("colorize", gray_file, "--recipe", recipe, "--report", report, "-q").code == 0
    assert json.loads(report.read_text())["recipe"]["chroma"] == 0.25
    assert facefix("colorize", gray_file, "--chroma", "1.5").code == 2
    assert facefix("colorize", gray_file, "--strength", "0.5").code == 2
    wrong = facefix("colorize", gray_file, "--model", "facefix-lite-256")
    assert (wrong.code, len(wrong.err.splitlines())) == (3, 1)
    assert "expected a network that colours faces, got a restorer" in wrong.err


def test_label_maps_become_faces(facefix: Command, tmp_path: Path) -> None:
    numbers = (np.arange(16, dtype=np.uint8).reshape(4, 4)).repeat(16, 0).repeat(16, 1)
    coloured, gray, photo = (tmp_path / f"{name}.png" for name in ("coloured", "gray", "photo"))
    Image.fromarray(PALETTE[numbers]).save(coloured)
    Image.fromarray(numbers).save(gray)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(photo)
    done = facefix("seg2face", coloured, "--precision", "float32")
    target = tmp_path / "coloured.face.png"
    assert (done.code, done.out) == (0, f"{target}: drawn with gpen-seg2face-512\n")
    assert np.abs(pixels(target) - PALETTE[numbers]).max() <= 1
    several = facefix("seg2face", gray, photo, "-o", tmp_path / "faces", "--precision", "float32", "-q")
    assert (several.code, several.out) == (1, "")
    assert "expected a label map in the colours of CelebAMask-HQ, or grey values 0 to 18" in several.err
    assert np.array_equal(pixels(tmp_path / "faces" / "gray.png"), pixels(target))
    short = tmp_path / "short.png"
    short.write_bytes(coloured.read_bytes()[:-60])
    done = facefix("seg2face", short, "--precision", "float32")
    assert (done.code, done.out) == (0, f"{tmp_path / 'short.face.png'}: drawn with gpen-seg2face-512\n")
    assert done.err.startswith(f"note: {short}: the picture is damaged or cut short")
    done = facefix("seg2face", coloured, "-o", tmp_path / ("n" * 300 + ".png"), "--precision", "float32")
    assert (done.code, "File name too long" in done.err) == (1, True)


def test_two_files_of_one_name_do_not_overwrite_each_other(facefix: Command, tmp_path: Path) -> None:
    sources = [tmp_path / folder / "labels.png" for folder in "ab"]
    for number, source in enumerate(sources, 1):
        source.parent.mkdir()
        Image.fromarray(np.full((64, 64), number, np.uint8)).save(source)
    out = tmp_path / "out"
    done = facefix("seg2face", *sources, "-o", out, "--overwrite", "--precision", "float32", "-q")
    assert done.code == 1
    assert f"{sources[1]}: {out / 'labels.png'} was just written for {sources[0]}" in done.err
    assert np.abs(pixels(out / "labels.png") - PALETTE[1]).max() <= 1


def test_selfie_brings_its_settings_and_what_is_said_beside_it_wins(
    facefix: Command, tmp_path: Path, portrait_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = facefix("restore", portrait_file, "--task", "selfie")
    assert bare.code == 3
    assert "gpen-bfr-2048: GPEN-BFR-2048.pth is not here" in bare.err
    there = tmp_path / "weights"
    there.mkdir()
    saved(of_pixels(), there / "GPEN-BFR-1024.pth")
    monkeypatch.setenv("FACEFIX_WEIGHTS", str(there))
    report, out = tmp_path / "report.json", tmp_path / "out.png"
    done = facefix("restore", portrait_file, "--task", "selfie", "--strength", 0.5, "--report", report, "-o", out)
    assert (done.code, done.err) == (0, "")
    written = json.loads(report.read_text())
    used = {name: written["recipe"][name] for name in ("restorer", "strength", "scale", "face", "sharp_faces")}
    assert used == {
        "restorer": "gpen-bfr-1024", "strength": 0.5, "scale": 2, "face": "largest", "sharp_faces": "restore",
    }  # fmt: skip
    assert (written["width"], written["height"]) == (1024, 1024)
    assert written["faces"][0]["outcome"] == "restored"
    both = facefix("restore", portrait_file, "--task", "selfie", "--recipe", report)
    assert (both.code, both.err) == (2, "facefix: expected --task selfie or --recipe, got both; leave one out\n")
