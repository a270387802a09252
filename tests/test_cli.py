import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from facefix import cli
from facefix.recipe import Recipe


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_one_photo_is_restored_beside_itself(facefix: Command, portrait_file: Path) -> None:
    done = facefix("restore", portrait_file)
    target = portrait_file.with_name("portrait.facefix.png")
    assert done.code == 0
    assert done.out.startswith(f"{target}: 1 of 1 faces restored with facefix-lite-256 in ")
    assert size(target) == (512, 512)


def test_report_faces_and_comparison_are_written(facefix: Command, portrait_file: Path, tmp_path: Path) -> None:
    out, report, faces, compare = (tmp_path / name for name in ("out.png", "report.json", "faces", "compare.jpg"))
    options = ("-o", out, "--report", report, "--faces-out", faces, "--compare", compare, "--strength", 0.5)
    assert facefix("restore", portrait_file, *options).code == 0
    written = json.loads(report.read_text())
    assert list(written)[:7] == ["source", "target", "width", "height", "recipe", "weights", "faces"]
    assert (written["source"], written["target"]) == (str(portrait_file), str(out))
    assert written["recipe"]["strength"] == 0.5
    [face] = written["faces"]
    keys = ["box_xyxy", "points", "score", "outcome", "reason", "restorer", "size", "seam", "seconds"]
    assert list(face) == keys
    assert sorted(path.name for path in faces.iterdir()) == ["portrait.01.after.png", "portrait.01.before.png"]
    assert size(faces / "portrait.01.after.png") == (256, 256)
    assert size(compare)[0] > 1024


def test_a_folder_goes_through_past_bad_files(facefix: Command, portrait: np.ndarray, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "restored"
    (scans / "b" / ".hidden").mkdir(parents=True)
    Image.fromarray(portrait).save(scans / "b" / "same.jpg", quality=90)
    Image.fromarray(portrait).save(scans / "b" / ".hidden" / "thumb.jpg")
    (scans / "a broken.png").write_bytes(b"no picture")
    (scans / "notes.txt").write_text("not a photo")
    report = tmp_path / "report.jsonl"
    done = facefix("restore", scans, "-o", out, "--restorer", "identity", "--report", report)
    assert done.code == 1
    assert "a broken.png" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert [path.relative_to(out) for path in sorted(out.rglob("*.*"))] == [Path("b/same.jpg")]
    assert (out / "b" / "same.jpg").read_bytes() == (scans / "b" / "same.jpg").read_bytes()
    first, second = (json.loads(line) for line in report.read_text().splitlines())
    assert "a broken.png" in first["error"]
    assert second["faces"][0]["outcome"] == "restored"


def test_nothing_is_overwritten_unless_asked(facefix: Command, portrait_file: Path) -> None:
    before = portrait_file.read_bytes()
    done = facefix("restore", portrait_file, "-o", portrait_file, "--restorer", "pattern")
    assert (done.code, portrait_file.read_bytes()) == (1, before)
    assert "exists already; give another -o or pass --overwrite" in done.err
    assert facefix("restore", portrait_file, "-o", portrait_file, "--restorer", "pattern", "--overwrite").code == 0
    assert portrait_file.read_bytes() != before


def test_a_photo_without_faces_is_copied(facefix: Command, tmp_path: Path) -> None:
    shore, out = tmp_path / "shore.jpg", tmp_path / "out.jpg"
    Image.fromarray(np.full((120, 160, 3), 90, np.uint8)).save(shore)
    done = facefix("restore", shore, "-o", out)
    assert (done.code, done.out.split(" in ")[0]) == (0, f"{out}: no face found")
    assert out.read_bytes() == shore.read_bytes()


def test_a_mask_limits_the_work(facefix: Command, portrait_file: Path, tmp_path: Path) -> None:
    mask, out = tmp_path / "mask.png", tmp_path / "out.png"
    Image.fromarray(np.zeros((512, 512), np.uint8)).save(mask)
    done = facefix("restore", portrait_file, "-o", out, "--mask", mask)
    assert done.code == 0
    assert "face 1 skipped: outside of the mask that was given" in done.out
    assert out.read_bytes() == portrait_file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--strength", "2"], 2, "--strength"),
        (["--detector", "dlib"], 2, "--detector"),
        (["--scale", "3"], 2, "--scale: expected one of 1, 2, 4, got 3"),
        (["--face", "left"], 2, "--face: expected all, largest"),
        (["--device", "abacus"], 2, "abacus"),
        (["--restorer", "gpen-bfr-2048"], 3, "gpen-bfr-2048"),
        (["--restorer", "no/such.pth"], 3, "no/such.pth"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["--recipe", "missing.toml"], 2, "missing.toml"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    facefix: Command, portrait_file: Path, arguments: list[str], code: int, says: str
) -> None:
    done = facefix("restore", portrait_file, *arguments)
    assert done.code == code
    assert says in done.err
    assert "Traceback" not in done.err
    assert not list(portrait_file.parent.glob("*.facefix.*"))


def test_missing_photos_are_named(facefix: Command, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for missing in (tmp_path / "nothing.jpg", tmp_path / "folder.png"):
        done = facefix("restore", missing, "--restorer", "identity")
        assert (done.code, len(done.err.strip().splitlines())) == (1, 1)
        assert missing.name in done.err


def test_every_setting_is_an_option_and_a_recipe_file_is_overruled_by_them(
    facefix: Command, portrait_file: Path, tmp_path: Path
) -> None:
    shown = facefix("restore", "--help").out
    for name in Recipe.settings():
        assert f"--{name.replace('_', '-')}" in shown
    recipe, report = tmp_path / "mine.toml", tmp_path / "report.json"
    recipe.write_text(Recipe(restorer="pattern", strength=0.25, feather=0.3).to_toml())
    options = ("--recipe", recipe, "--strength", 1.0, "--report", report)
    assert facefix("restore", portrait_file, *options).code == 0
    used = json.loads(report.read_text())["recipe"]
    assert (used["restorer"], used["strength"], used["feather"]) == ("pattern", 1.0, 0.3)


def test_ctrl_c_is_130(facefix: Command, portrait_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_one", interrupted)
    done = facefix("restore", portrait_file, "--restorer", "identity")
    assert (done.code, "interrupted" in done.err) == (130, True)


def test_it_is_a_program() -> None:
    for arguments in (["--version"], ["--help"], ["restore", "--help"], ["weights", "list"]):
        done = subprocess.run(
            [sys.executable, "-m", "facefix", *arguments], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert "facefix" in done.stdout
