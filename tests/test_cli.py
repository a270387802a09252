import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from facefix import cli
from facefix.errors import counted
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


def test_a_folder_goes_through_past_bad_files(facefix: Command, portrait: np.ndarray, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "restored"
    (scans / "b" / ".hidden").mkdir(parents=True)
    Image.fromarray(portrait).save(scans / "b" / "same.jpg", quality=90)
    Image.fromarray(portrait).save(scans / "b" / ".hidden" / "thumb.jpg")
    (scans / "a broken.png").write_bytes(b"no picture")
    (scans / "notes.txt").write_text("not a photo")
    report = tmp_path / "report.jsonl"
    command = ("restore", scans, "-o", out, "--restorer", "identity", "--engine", "serial")
    done = facefix(*command, "--report", report)
    assert done.code == 1
    assert "a broken.png" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert [path.relative_to(out) for path in sorted(out.glob("[!.]*/*"))] == [Path("b/same.jpg")]
    assert (out / "b" / "same.jpg").read_bytes() == (scans / "b" / "same.jpg").read_bytes()
    first, second = (json.loads(line) for line in report.read_text().splitlines())
    assert "a broken.png" in first["error"]
    assert second["faces"][0]["outcome"] == "restored"
    assert (out / ".facefix" / "report.jsonl").read_text() == report.read_text()
    assert "b/same.jpg: 1 of 1 faces restored with identity in " in done.out
    summary = "1 photo done (1 face restored), 1 failed, 1 other file left alone"
    assert summary in done.out.splitlines()[-1]
    again = facefix(*command, "--report", tmp_path / "list.json")
    assert (again.code, again.err) == (1, "")
    assert "0 photos done (0 faces restored), 1 done before, 1 failed before (--retry-failed tries again)" in again.out
    assert len(json.loads((tmp_path / "list.json").read_text())) == 2
    silent = facefix(*command, "--quiet")
    assert (silent.code, silent.out) == (1, "")
    assert silent.err == "facefix: 1 failed before; --retry-failed tries again\n"
    Image.fromarray(portrait).save(scans / "a broken.png")
    mended = facefix(*command, "--json-lines")
    assert (mended.code, mended.err.count("\n")) == (0, 1)
    [line] = mended.out.splitlines()
    assert json.loads(line)["target"] == "a broken.png"


def test_several_photos_globs_and_lists_go_through_one_run(
    facefix: Command, portrait: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("1/a.png", "1/b.png", "2/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((30, 30, 3), 90 + len(list(Path().rglob("*.png"))), np.uint8)).save(name)
    Path("list").write_bytes(b"1/b.png\0./2/a.png\0")
    same = ("--restorer", "identity", "--engine", "serial", "--quiet")
    assert facefix("restore", "1/a.png", "1/b.png", "-o", "named", *same).code == 0
    assert facefix("restore", "[12]/a.png", "-o", "fitting", *same).code == 0
    assert facefix("restore", "--from-file", "list", "-o", "listed", *same) == (0, "", "")
    assert facefix("restore", "1/a.png", "-o", "listed", *same).code == 0, "an OUT with a journal takes one more"
    made = {folder: sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.png")) for folder in
            ("named", "fitting", "listed")}  # fmt: skip
    assert made == {
        "named": ["a.png", "b.png"],
        "fitting": ["1/a.png", "2/a.png"],
        "listed": ["1/b.png", "2/a.png", "a.png"],
    }
    assert facefix("restore", "1/a.png", "1/b.png", "--restorer", "identity").code == 0, "beside them, without -o"
    assert sorted(path.name for path in Path("1").iterdir()) == ["a.facefix.png", "a.png", "b.facefix.png", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "INPUT: expected photos or folders, got none"),
        (["scans"], 2, "scans: expected -o FOLDER for what comes of many photos"),
        (["file.png", "scans"], 2, "scans: expected -o FOLDER for what comes of many photos, got none; name one, or"),
        (["file.png", "scans/*"], 2, "scans/*: expected -o FOLDER for what comes of many photos, got none; name one"),
        (["scans", "-o", "file.png"], 2, "expected a folder for many photos, got a file"),
        (["scans", "-o", "scans/out"], 2, "expected a folder outside of scans, got one inside"),
        (["scans", "-o", "scans"], 2, "expected a folder of its own, got one that holds scans"),
        (["scans", "missing", "-o", "out"], 2, "missing: expected a photo or a folder, got nothing by that name"),
        (["scans/*.gif", "-o", "out"], 2, "expected the names of photos or folders, got none that fits"),
        (["scans", "other/scans", "-o", "out"], 2, "expected two names, got scans twice"),
        (["scans/a.png", "other/scans/a.png", "-o", "out"], 2, "expected two names, got a.png twice"),
        (["--from-file", "nothing", "-o", "out"], 2, "--from-file nothing: No such file or directory"),
        (["scans", "-o", "out", "--faces-out", "faces"], 2, "--faces-out goes with single photos"),
        (["scans", "-o", "out", "--compare", "both"], 2, "--compare goes with single photos"),
        (["scans/a.png", "-o", "out.png", "--retry-failed"], 2, "--retry-failed goes with runs over many photos"),
        (["scans", "-o", "out", "--workers", "-1"], 2, "--workers"),
        (["n" * 300, "-o", "out"], 1, "File name too long"),
        (["scans", "n" * 300, "-o", "out"], 2, "nnn: expected a photo or a folder, got nothing by that name"),
        (["scans", "-o", "n" * 300], 2, "File name too long; name a folder that can be written"),
        (["scans/a.png", "-o", "out.png", "--report", "file.png/report.json"], 2, "--report file.png/report.json"),
        (["scans", "-o", "out", "--mask", "no.png", "--engine", "serial"], 1, "no.png: No such file or directory"),
        (["scans", "-o", "out", "--engine", "serial", "--restorer", "no-net"], 3, "no-net"),
        (["empty", "-o", "out", "--engine", "serial"], 1, "empty: expected photos, got none"),
    ],
)
def test_wrong_usage_of_a_run_is_one_clear_line(
    facefix: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("scans", "other/scans", "empty"):
        Path(folder).mkdir(parents=True)
    for name in ("scans/a.png", "other/scans/a.png", "file.png"):
        Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(name)
    done = facefix("restore", *arguments)
    assert (done.code, says in done.err) == (code, True), done.err
    assert "Traceback" not in done.err
    assert sorted(path.name for path in Path("scans").iterdir()) == ["a.png"]


def test_of_many_photos_with_one_trouble_ten_are_named(facefix: Command, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(25):
        (tmp_path / "scans" / f"{number:02d}.jpg").write_bytes(b"%PDF-1.7")
    (tmp_path / "scans" / "zip.jpg").write_bytes(b"PK\x03\x04")
    done = facefix("restore", tmp_path / "scans", "-o", tmp_path / "out", "--engine", "serial")
    lines = done.err.strip().splitlines()
    assert (done.code, len(lines)) == (1, 12)
    assert "more photos with 'expected a picture, got a PDF" in next(line for line in lines if "more" in line)
    assert "report.jsonl names them" in done.err
    assert "26 failed" in done.out
    assert len((tmp_path / "out" / ".facefix" / "report.jsonl").read_text().splitlines()) == 26


def test_ctrl_c_finishes_the_photos_in_hand_and_the_same_command_goes_on(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for number in range(30):
        Image.fromarray(np.full((400, 600, 3), 90 + number, np.uint8)).save(scans / f"{number:02d}.png")
    command = [sys.executable, "-m", "facefix", "restore", scans, "-o", out, "--restorer", "identity", "--workers", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline()
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes of the run
        _, said = run.communicate()
    assert run.returncode == 130
    assert "finishing the photos in hand; Ctrl-C again stops at once" in said
    finished = [path for path in out.iterdir() if path.suffix == ".png"]
    assert 1 <= len(finished) < 25
    assert (
        f"interrupted; {counted(len(finished), 'photo')} finished and kept; the same command goes on from here" in said
    )
    assert len(said.strip().splitlines()) == 2
    assert len((out / ".facefix" / "report.jsonl").read_text().splitlines()) == len(finished)
    assert list((out / ".facefix" / "tmp").iterdir()) == []


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_second_ctrl_c_stops_at_once(portrait: np.ndarray, tmp_path: Path, engine: str) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    Image.fromarray(portrait[:20, :20]).save(scans / "0.bmp")
    for number in (1, 2):
        Image.fromarray(np.tile(portrait[::2, ::2], (number + 4, 6, 1))).save(scans / f"{number}.bmp")
    command = [sys.executable, "-m", "facefix", "restore", scans, "-o", out, "--engine", engine]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline()
        os.killpg(run.pid, signal.SIGINT)
        first = run.stderr.readline()
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate()
    assert "finishing the photos in hand" in first
    last = said.splitlines()[-1]
    assert last == "facefix: stopped at once; 1 photo finished and kept; the same command goes on from here"
    assert run.returncode == 130
    assert [path.name for path in out.iterdir() if path.suffix == ".bmp"] == ["0.bmp"]


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

    monkeypatch.setattr(cli, "_one", interrupted)
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
