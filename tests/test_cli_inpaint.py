import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Command
from PIL import Image

from facefix import inpainting
from facefix.recipe import Recipe
from facefix.weights import Store


@pytest.fixture
def hole_file(tmp_path: Path) -> Path:
    """A stroke across the portrait's face."""
    hole = np.zeros((512, 512), np.uint8)
    cv2.line(hole, (170, 60), (270, 170), 255, 3)
    Image.fromarray(hole).save(tmp_path / "hole.png")
    return tmp_path / "hole.png"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_hole_is_filled_and_its_face_restored(facefix: Command, portrait_file: Path, hole_file: Path) -> None:
    out, report = portrait_file.with_name("out.png"), portrait_file.with_name("report.json")
    done = facefix("inpaint", portrait_file, hole_file, "-o", out, "--engine", "cv2", "--report", report)
    assert done.code == 0
    hole = pixels(hole_file) > 0
    assert done.out.startswith(f"{out}: {hole.sum()} px filled with cv2, 1 of 1 faces restored with facefix-lite-256")
    assert done.err == ""
    far = cv2.dilate(hole.astype(np.uint8), np.ones((9, 9))) == 0
    np.testing.assert_array_equal(pixels(out)[far], pixels(portrait_file)[far])
    assert (pixels(out) != pixels(portrait_file)).any()
    written = json.loads(report.read_text())
    assert list(written) == [
        "source", "target", "width", "height", "recipe", "weights", "faces", "warnings", "seconds", "fill"
    ]  # fmt: skip
    assert (written["source"], written["target"]) == (str(portrait_file), str(out))
    assert written["recipe"] == Recipe(engine="cv2").values("inpaint")
    assert list(written["fill"]) == ["engine", "seed", "hole_px", "boxes", "seconds"]
    assert written["faces"][0]["outcome"] == "restored"


def test_auto_says_once_what_would_be_better(
    facefix: Command, portrait_file: Path, hole_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(portrait_file.parent / "cache"))
    if Store.default().find("big-lama") is not None:
        pytest.skip("LaMa's weights are in this checkout")
    arguments = ("inpaint", portrait_file, hole_file, "--no-faces", "--overwrite")
    done = facefix(*arguments)
    target = portrait_file.with_name("portrait.facefix.png")
    assert (done.code, target.exists()) == (0, True)
    assert done.err.startswith(
        "note: engine cv2 smears anything wider than a scratch; `facefix weights fetch big-lama`"
    )
    assert len(done.err.splitlines()) == 1
    assert "faces" not in done.out
    quiet = facefix(*arguments, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_transparent_pixels_need_no_mask(facefix: Command, portrait: np.ndarray, tmp_path: Path) -> None:
    alpha = np.full((512, 512), 255, np.uint8)
    alpha[400:420, 30:90] = 0
    Image.fromarray(np.dstack([portrait, alpha])).save(tmp_path / "torn.png")
    done = facefix("inpaint", tmp_path / "torn.png", "-o", tmp_path / "whole.png", "--engine", "cv2")
    assert (done.code, "1200 px filled" in done.out) == (0, True)
    assert "face 1 skipped: the hole does not touch it" in done.out
    assert pixels(tmp_path / "whole.png")[:, :, 3].min() == 255


def test_the_frame_grows(facefix: Command, portrait_file: Path, tmp_path: Path) -> None:
    options = ("--outpaint", "10,0,10%,0", "--engine", "cv2", "--no-faces")
    done = facefix("inpaint", portrait_file, "-o", tmp_path / "wide", *options)
    assert done.code == 0
    wide = pixels(tmp_path / "wide" / "portrait.png")
    assert wide.shape == (512, 573, 3)
    np.testing.assert_array_equal(wide[:, 14:518], pixels(portrait_file)[:, 4:508])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--prompt", "a wall", "--engine", "cv2"], 2, "--prompt: --engine cv2, which does not use it; leave it out"),
        (["--refine", "--engine", "cv2"], 2, "--refine: --engine cv2"),
        (["--candidates", "3", "--engine", "cv2"], 2, "whose fill is the same every time"),
        (["--engine", "photoshop"], 2, "--engine"),
        (["--outpaint", "5"], 2, "--outpaint: expected LEFT,TOP,RIGHT,BOTTOM"),
        (["--feather-px", "-1"], 2, "--feather-px"),
        (["--engine", "mat", "--model", "no/such.pth"], 3, "no/such.pth"),
        (["--hires", "3"], 2, "--hires"),
        (["-o", "out.xyz"], 1, "out.xyz"),
        (["-o", "n" * 300 + ".png"], 1, "File name too long"),
        (["--scale", "2"], 2, "--scale"),
        (["--device", "abacus"], 2, "abacus"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    facefix: Command, portrait_file: Path, hole_file: Path, arguments: list[str], code: int, says: str
) -> None:
    done = facefix("inpaint", portrait_file, hole_file, *arguments)
    assert done.code == code
    assert says in done.err
    assert "Traceback" not in done.err
    assert not list(portrait_file.parent.glob("*.facefix.*"))


def test_masks_and_scenes_that_cannot_work_are_named(facefix: Command, portrait_file: Path, tmp_path: Path) -> None:
    Image.new("L", (20, 10), 255).save(tmp_path / "small.png")
    Image.new("L", (512, 512)).save(tmp_path / "empty.png")
    Image.new("1", (512, 512), 1).save(tmp_path / "full.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for mask, says in (
        ("small.png", "the mask does not fit: expected 512x512 px as the photo, got 20x10"),
        ("empty.png", "the mask is empty"),
        ("full.png", "the hole covers the whole photo"),
        ("broken.png", "broken.png"),
        ("missing.png", "missing.png"),
    ):
        done = facefix("inpaint", portrait_file, tmp_path / mask, "--engine", "cv2")
        assert (done.code, len(done.err.strip().splitlines())) == (1, 1), mask
        assert says in done.err
    done = facefix("inpaint", portrait_file, "--engine", "cv2")
    assert (done.code, "give a mask, or --outpaint" in done.err) == (1, True)
    assert facefix("inpaint", tmp_path / "missing.jpg", tmp_path / "full.png").code == 1


def test_nothing_is_overwritten_unless_asked(facefix: Command, portrait_file: Path, hole_file: Path) -> None:
    before = portrait_file.read_bytes()
    arguments = ("inpaint", portrait_file, hole_file, "-o", portrait_file, "--engine", "cv2", "--no-faces")
    done = facefix(*arguments)
    assert (done.code, portrait_file.read_bytes()) == (1, before)
    assert "exists already; give another -o or pass --overwrite" in done.err
    assert facefix(*arguments, "--overwrite").code == 0
    assert portrait_file.read_bytes() != before


def test_every_setting_of_inpaint_is_an_option_and_restore_has_none_of_its_own(facefix: Command) -> None:
    shown, restore = facefix("inpaint", "--help").out, facefix("restore", "--help").out
    for name in Recipe.settings("inpaint"):
        assert f"--{name.replace('_', '-')} " in shown
    for option in ("--feather-px ", "--prompt ", "--outpaint ", "--no-faces "):
        assert option not in restore


def test_a_recipe_file_is_overruled_by_options(facefix: Command, portrait_file: Path, hole_file: Path) -> None:
    recipe, report = portrait_file.with_name("mine.toml"), portrait_file.with_name("report.jsonl")
    recipe.write_text(Recipe(engine="cv2", feather_px=9, dilate_px=2, faces=False, scale=2).to_toml())
    options = ("--recipe", recipe, "--feather-px", 1, "--report", report)
    assert facefix("inpaint", portrait_file, hole_file, *options).code == 0
    [line] = report.read_text().splitlines()
    used = json.loads(line)["recipe"]
    assert (used["engine"], used["feather_px"], used["dilate_px"], used["faces"]) == ("cv2", 1, 2, False)
    assert "scale" not in used


def test_candidates_are_numbered(facefix: Command, portrait: np.ndarray, tmp_path: Path) -> None:
    tiny = pytest.importorskip("tiny_diffusion")
    Image.fromarray(portrait[:64, :80]).save(tmp_path / "scene.png")
    hole = np.zeros((64, 80), np.uint8)
    hole[20:30, 20:40] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    model, report = tiny.save(tmp_path / "model", 4), tmp_path / "report.json"
    options = ("--engine", "sd", "--model", model, "--steps", 1, "--candidates", 2, "--seed", 8, "--no-faces")
    done = facefix(
        "inpaint",
        tmp_path / "scene.png",
        tmp_path / "hole.png",
        "-o",
        tmp_path / "out.png",
        *options,
        "--report",
        report,
    )
    assert done.code == 0, done.err
    first, second = json.loads(report.read_text())
    assert [Path(each["target"]).name for each in (first, second)] == ["out.1.png", "out.2.png"]
    assert [each["fill"]["seed"] for each in (first, second)] == [8, 9]
    assert (pixels(tmp_path / "out.1.png") != pixels(tmp_path / "out.2.png")).any()
    assert not (tmp_path / "out.png").exists()
    assert "seed 9" in done.out


def test_ctrl_c_is_130(facefix: Command, portrait_file: Path, hole_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inpainting.Inpainter, "candidates", interrupted)
    done = facefix("inpaint", portrait_file, hole_file, "--engine", "cv2", "--no-faces")
    assert (done.code, "interrupted; 0 of 1 results were finished and are kept" in done.err) == (130, True)


def test_the_help_of_the_program_names_it() -> None:
    done = subprocess.run([sys.executable, "-m", "facefix", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, "inpaint" in done.stdout) == (0, True)
