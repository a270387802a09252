import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from facefix import cli_photos
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
    keys = ["box_xyxy", "points", "score", "outcome", "reason", "restorer", "size", "seam", "identity", "seconds"]
    assert list(face) == keys
    assert sorted(path.name for path in faces.iterdir()) == ["portrait.01.after.png", "portrait.01.before.png"]
    assert size(faces / "portrait.01.after.png") == (256, 256)
    assert size(compare)[0] > 1024


def test_nothing_is_overwritten_unless_asked(facefix: Command, portrait_file: Path) -> None:
    before = portrait_file.read_bytes()
    done = facefix("restore", portrait_file, "-o", portrait_file, "--restorer", "pattern")
    assert (done.code, portrait_file.read_bytes()) == (1, before)
    assert "exists already; give another -o or pass --overwrite" in done.err
    assert facefix("restore", portrait_file, "-o", portrait_file, "--restorer", "pattern", "--overwrite").code == 0
    assert portrait_file.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--report", "portrait.png"], 2),
        (["--report", "out.png"], 2),
        (["--report", "pipe"], 2),
        (["--report", "."], 2),
        (["--compare", "portrait.png", "--overwrite"], 1),
        (["--compare", "out.png"], 1),
        (["--compare", "mine.png"], 1),
        (["--compare", "sheet.xyz"], 1),
        (["--faces-out", "faces"], 1),
    ],
)
def test_nothing_beside_the_result_replaces_what_is_there(
    facefix: Command, portrait_file: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int
) -> None:
    monkeypatch.chdir(portrait_file.parent)
    mine = [Path("mine.png"), Path("faces/portrait.01.before.png"), portrait_file]
    Path("faces").mkdir()
    for path in mine[:2]:
        path.write_bytes(b"my own")
    os.mkfifo("pipe")
    before = [path.read_bytes() for path in mine]
    done = facefix("restore", "portrait.png", "-o", "out.png", "--restorer", "identity", *options)
    assert (done.code, len(done.err.strip().splitlines())) == (code, 1)
    assert [path.read_bytes() for path in mine] == before
    assert Path("pipe").is_fifo()
    if options == ["--report", "out.png"]:
        assert size(Path("out.png")) == (512, 512)
    else:
        assert not Path("out.png").exists()


def test_a_report_replaces_an_earlier_one_and_no_other_file(
    facefix: Command, portrait_file: Path, tmp_path: Path
) -> None:
    report, link, out = tmp_path / "report.json", tmp_path / "link.json", tmp_path / "out"
    report.touch()
    link.symlink_to(report)
    several = ("restore", portrait_file, tmp_path / "nothing.png", "--restorer", "identity", "--overwrite")
    one = several[:2] + several[3:]
    for command, entries in ((one, dict), (several, list), (one, dict)):
        facefix(*command, "--report", link)
        assert isinstance(json.loads(report.read_text()), entries)
    assert link.is_symlink()
    mine = tmp_path / "notes.json"
    mine.write_text('{"name": "mine"}')
    (tmp_path / "scans").mkdir()
    portrait_file.rename(tmp_path / "scans" / "portrait.png")
    many = ("restore", tmp_path / "scans", "-o", out, "--restorer", "identity", "--engine", "serial")
    assert facefix(*many, "--report", mine).code == 2
    assert not out.exists()
    done = facefix(*many, "--report", out / "portrait.png")
    assert (done.code, size(out / "portrait.png")) == (2, (512, 512))
    assert mine.read_text() == '{"name": "mine"}'


def test_of_two_photos_with_one_result_name_the_second_fails(
    facefix: Command, portrait: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(portrait[:200, 145:295]).save("one.png")
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save("one.gif")
    Path("here").symlink_to(".")
    Path("one.facefix.png").write_bytes(b"an earlier result")
    options = ("--overwrite", "--restorer", "identity", "-q")
    done = facefix("restore", "one.png", "here/one.gif", *options)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "facefix: here/one.gif: here/one.facefix.png was just written for one.png; do this photo" in done.err
    assert size(Path("one.facefix.png")) == (150, 200)

    Image.fromarray(portrait[:200, 145:295]).save("one.jpg")
    done = facefix("restore", "one.png", "one.jpg", *options, "--faces-out", "faces")
    assert done.code == 1
    assert "one.jpg: faces/one.01.before.png was just written for one.png; do this photo by itself" in done.err
    assert not Path("one.facefix.jpg").exists()
    done = facefix("restore", "one.png", "one.jpg", *options, "--compare", "both")
    assert (done.code, "one.jpg: both/one.compare.jpg was just written for one.png" in done.err) == (1, True)


def test_no_result_replaces_another_of_the_photos(
    facefix: Command, face: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "a.facefix.png")):
        Image.fromarray(np.roll(face, number)).save(name)
    other = Path("a.facefix.png").read_bytes()
    done = facefix("restore", "a.png", tmp_path / "a.facefix.png", "--overwrite", "--restorer", "identity", "-q")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "facefix: a.png: a.facefix.png is another of the photos named; give another -o, or" in done.err
    assert Path("a.facefix.png").read_bytes() == other
    assert Path("a.facefix.facefix.png").exists()
    again = facefix("restore", "a.png", "a.facefix.png", "--overwrite", "--compare", ".", "--restorer", "identity")
    assert "is another of the photos named" in again.err


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
    done = facefix("restore", tmp_path / "nothing.jpg", "--restorer", "identity")
    assert (done.code, len(done.err.strip().splitlines())) == (1, 1)
    assert "nothing.jpg" in done.err


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

    monkeypatch.setattr(cli_photos, "_one", interrupted)
    done = facefix("restore", portrait_file, "--restorer", "identity")
    assert (done.code, "interrupted" in done.err) == (130, True)


def test_an_upscaler_without_a_scale_is_told(facefix: Command, portrait_file: Path) -> None:
    options = ("--restorer", "identity", "--overwrite", "--upscaler", "realesrgan-x4plus")
    done = facefix("restore", portrait_file, *options)
    assert done.code == 0
    assert done.err == "note: --upscaler realesrgan-x4plus has nothing to do at --scale 1; give --scale 2 or 4\n"
    assert facefix("restore", portrait_file, *options, "--quiet").err == ""


def test_a_name_that_stdout_cannot_show_stops_nothing(portrait_file: Path) -> None:
    photos = [portrait_file.rename(portrait_file.with_name("ü.png")), portrait_file.with_name("b.png")]
    photos[1].write_bytes(photos[0].read_bytes())
    command = [sys.executable, "-m", "facefix", "restore", *photos, "--restorer", "identity"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(".facefix")[0].rpartition(os.sep)[2] for line in done.stdout.splitlines()] == ["\\xfc", "b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("command", ["restore", "verify", "weights list", "--help", "nonsense"])
def test_a_full_standard_output_is_one_line(command: str, scans: Path, tmp_path: Path) -> None:
    arguments = command.split()
    if command == "restore":
        arguments += ["--restorer", "identity", str(scans / "sub" / "plain0.png")]
    elif command == "verify":
        arguments += [str(tmp_path / "out")]
        restored = ("restore", scans, "-o", tmp_path / "out", "--restorer", "identity", "--engine", "serial", "-q")
        subprocess.run([sys.executable, "-m", "facefix", *map(str, restored)], check=True)
    shell = ["sh", "-c", '"$@" > /dev/full', "sh", sys.executable, "-m", "facefix", *arguments]
    done = subprocess.run(shell, check=False, capture_output=True, text=True)
    if command == "nonsense":  # which prints nothing there
        assert (done.returncode, "Error" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    else:
        assert done.returncode == 1
        told = "expected room for what is printed, got 'No space left on device'; send it elsewhere"
        assert done.stderr == f"facefix: standard output: {told}\n"
        assert (scans / "sub" / "plain0.facefix.png").exists() == (command == "restore")


def test_it_is_a_program() -> None:
    fetch = ["weights", "fetch", "facefix-lite-256"]
    for arguments in (["--version"], ["--help"], ["restore", "--help"], ["weights", "list"], fetch):
        done = subprocess.run(
            [sys.executable, "-m", "facefix", *arguments], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert "facefix" in done.stdout
