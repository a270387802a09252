"""The archive tab: the command's own run and board in a browser, and no way out of the server's folders."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archive
import numpy as np
import pytest
from archive import RECIPE, group_photo, row_at

pytest.importorskip("gradio")

from gradio_client import Client
from gradio_client.exceptions import AppError
from web_server import PATIENCE_S, Page, Served, phone, served, until

from facefix.errors import FacefixError, JournalError, UsageError
from facefix.jobs import undo
from facefix.jobs.database import FOLDER
from facefix.jobs.journal import Journal
from facefix.recipe import Recipe
from facefix.web.archive import Archive
from facefix.web.archive_run import Standing
from facefix.web.archive_status import told_of_journal, told_of_run
from facefix.web.folders import below, folders, inside
from facefix.web.house import House

EVIL = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "in").mkdir()
    house = House(input_dir=tmp_path / "in", output_dir=tmp_path / "out", parent=tmp_path, device="cpu")
    yield house
    house.close()


def scans(folder: Path, count: int = 3) -> Path:
    for number in range(count):
        archive.save(np.roll(group_photo(), number, axis=1), folder / f"{number}.jpg", quality=90)
    return folder


def choose(page: Page, css: str, name: str) -> None:
    """Types a folder's name instead of what stands there."""
    field = page.one(f"{css} input")
    field.click()
    field.send_keys(f"\ue009a\ue000{name}\n")


def states(out: Path) -> dict[str, int]:
    with Journal.open(out, write=False) as journal:
        return {state: count for state, count in journal.counts().items() if count}


@pytest.mark.parametrize("named", ["../out", "/etc", "a/../../x", "link", "link/deeper", "a\0b", ".."])
def test_no_name_leads_out_of_the_servers_folders(house: House, tmp_path: Path, named: str) -> None:
    (tmp_path / "elsewhere" / "deeper").mkdir(parents=True)
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "photos").mkdir()
    rooms = Archive(house)
    for way, told in ((rooms.source, "input"), (rooms.results, "output")):
        with pytest.raises(
            UsageError, match=f"inside the server's {told} folder, got a way out of it; choose"
        ) as caught:
            way(named)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(UsageError, match="way out"):
        rooms.start("photos", named, Recipe())
    assert folders(tmp_path / "in") == ["photos"]


def test_folders_are_named_by_their_ways(tmp_path: Path) -> None:
    for name in ("b/c", "a", ".hidden/x", "b/.facefix"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photo.jpg").touch()
    assert folders(tmp_path) == ["a", "b", "b/c"]
    assert folders(tmp_path / "missing") == folders(None) == []
    assert inside(tmp_path.resolve(), "b/c ", "input") == tmp_path.resolve() / "b/c"
    assert inside(tmp_path.resolve(), str(tmp_path.resolve() / "b"), "input") == tmp_path.resolve() / "b"
    assert below(tmp_path, f"{tmp_path}/b/c.jpg: it is damaged") == "b/c.jpg: it is damaged"


def test_what_cannot_begin_is_said_at_once(house: House, tmp_path: Path) -> None:
    rooms = Archive(house)
    for name in ("nothing", "n" * 300):
        with pytest.raises(UsageError, match=f"{name}: expected a folder of the server's input folder, got none"):
            rooms.start(name, "x", Recipe())
    (tmp_path / "in" / "a").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(UsageError, match="file: expected a folder for the results, got a file"):
        rooms.start("a", "file", Recipe())
    assert rooms.began_with(rooms.results("n" * 300)) is None
    with pytest.raises(JournalError, match="File name too long; name a folder that can be written"):
        rooms.start("a", "n" * 300, Recipe())
    holder = "import sys; from pathlib import Path; from facefix.jobs.journal import Journal\n"
    holder += "j = Journal.open(Path(sys.argv[1]), create=True); j.begin(); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(tmp_path / "out" / "x")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(JournalError, match=rf"process {other.pid} on .* is at work on this folder; wait for it"):
            rooms.start("a", "x", Recipe())
        other.communicate("")
    assert not rooms.alive
    (tmp_path / "out" / "linked").mkdir()
    (tmp_path / "out" / "linked" / FOLDER).symlink_to(tmp_path)
    with pytest.raises(JournalError, match="got a link, which may lead out of the output folder"):
        rooms.start("a", "linked", Recipe())


def test_a_run_that_breaks_is_not_called_done(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("facefix.web.archive_run.Drive.go", lambda drive, _: drive.no_such_word)
    scans(tmp_path / "in" / "a", 1)
    run = Archive(house).start("a", "b", RECIPE)
    run.join()
    assert run.standing().state == "broken"
    assert "the run broke (AttributeError: 'Drive' object has no" in run.standing().problem
    assert "Traceback" in capfd.readouterr().err


def test_a_server_without_folders_says_so(tmp_path: Path) -> None:
    house = House(parent=tmp_path)
    with pytest.raises(UsageError, match="a server with --input-dir and --output-dir, got one without; start it"):
        Archive(house).start("a", "b", Recipe())
    house.close()


@pytest.mark.slow
def test_the_page_goes_on_with_what_the_command_began_and_the_other_way_round(house: House, tmp_path: Path) -> None:
    source, out = scans(tmp_path / "in" / "a", 1), tmp_path / "out" / "b"
    archive.restore(source, out)  # as the command does
    (source / "leak.jpg").symlink_to("/etc/hostname")
    (source / "bad.jpg").write_bytes(b"nothing of a photo")
    scans(source, 6)
    rooms = Archive(house)
    assert rooms.began_with(tmp_path / "out" / "none") is None
    assert rooms.began_with(out) == (source, RECIPE)
    run = rooms.start("a", "b", RECIPE)
    with pytest.raises(UsageError, match="a is being restored, expected one archive at a time; wait for it, or pause"):
        rooms.start("a", "c", RECIPE)
    until(lambda: run.standing().counts["done"])
    rooms.pause()
    run.join()
    told = run.standing()
    assert (told.state, rooms.alive, told.counts["before"]) == ("paused", False, 1)
    assert told.finished == told.counts["done"] + 1
    assert told.faces == 3 * told.counts["done"]
    assert [line.partition(":")[0] for line in sorted(told.failures)] == ["bad.jpg", "leak.jpg"]
    assert "a link that leads out of the server's input folder" in sorted(told.failures)[1]
    left = states(out)
    assert (left["done"], left["failed"], "running" in left) == (1 + told.counts["done"], 1, False)
    says = rooms.journal_says(out)
    assert says == ({"queued": 0, "running": 0} | left, [line for line in told.failures if "bad" in line])
    (source / "leak.jpg").unlink()
    events = archive.restore(source, out)
    assert events.count("done") == 6 - left["done"]
    assert states(out) == {"done": 6, "failed": 1}
    assert (out / FOLDER / "report.jsonl").read_text().count("\n") == 7


def test_decisions_are_carried_out_and_undone(house: House, tmp_path: Path) -> None:
    out = tmp_path / "out" / "b"
    archive.restore(scans(tmp_path / "in" / "a", 1), out)
    rooms = Archive(house)
    with Journal.open(out, write=False) as journal:
        row = row_at(journal, "0.jpg")
    assert row.id is not None
    before = (out / "0.jpg").read_bytes()
    told = {row.id: {1: False, 2: True}, "0" * 64: {1: False}, row.id[:10]: {}}
    line, spent = rooms.carry_out(out, told)
    assert line == "1 face taken back, in 1 photo; 2 decided before their photos were restored anew: look at them again"
    assert sorted(spent) == sorted([f"{row.id}#1", "0" * 64 + "#1"])
    assert (out / "0.jpg").read_bytes() != before
    with Journal.open(out), pytest.raises(JournalError, match="is at work on this folder"):
        rooms.take_back(out)
    assert rooms.can_take_back(out)
    assert rooms.take_back(out) == "0 faces taken back, 1 brought in again, in 1 photo"
    assert (out / "0.jpg").read_bytes() == before
    report = out / FOLDER / "report.jsonl"
    told_last = report.read_bytes()
    report.write_bytes(b"")  # as a power cut leaves an older one that comes after the last photo
    line, _ = rooms.carry_out(out, {row.id: {9: False}})
    assert report.read_bytes() == told_last
    assert line == "0 faces taken back, in 0 photos; " + line.partition("; ")[2]
    assert "expected a face's number, one of 1 to 3, got 9" in line
    with pytest.raises(FacefixError, match="no such journal"):
        rooms.carry_out(tmp_path / "out" / "none", told)


def test_names_and_reasons_are_text(house: House) -> None:
    assert house.input_dir is not None
    assert house.output_dir is not None
    rooms = Archive(house)
    counts = dict.fromkeys(("met", "done", "copied", "before", "failed", "failed before", "closed"), 0)
    counts |= {"met": 100, "done": 7, "failed": 60}
    standing = Standing("running", "", counts, 9, 10.0, (f"{EVIL}: it is damaged",) * 50, (EVIL,))
    text = told_of_run(house.input_dir / EVIL, house.output_dir / "b", standing, rooms)
    text += told_of_journal(house.output_dir / EVIL, {"queued": 3, "running": 0, "done": 1, "failed": 1}, [EVIL], rooms)
    assert "<img" not in text
    for says in (
        "7 of 100",
        "60",
        "6.70 photos/s",
        "about 5 s",
        "and 10 more",
        "3 still to be done",
        "aria-valuenow='67'",
    ):
        assert says in text
    none = dict.fromkeys(counts, 0)
    for state, says in (("starting", "'0' aria-valuetext='0 of 0'"), ("finished", "'100' aria-valuetext='0 of 0'")):
        begun = dataclasses.replace(standing, state=state, counts=none)
        assert says in told_of_run(house.input_dir, house.output_dir, begun, rooms)
    broken = dataclasses.replace(standing, state="broken", problem=f"{house.output_dir}/b/.facefix: the disk is full")
    assert "<p class='trouble'>b/.facefix: the disk is full</p>" in told_of_run(
        house.input_dir, house.output_dir, broken, rooms
    )


@pytest.mark.slow
def test_a_run_outlives_the_page_and_two_visitors_see_it(page_server: Served, chromium: Any, tmp_path: Path) -> None:
    folder = page_server.temporary.parent
    scans(folder / "in" / "family" / "1890s", 2)
    scans(folder / "in" / "family", 3)
    (folder / "in" / "family" / "bad.jpg").write_bytes(b"nothing of a photo")
    page = Page(chromium, page_server.address, "Archive")
    until(lambda: "No run yet" in page.text("#archive-status"))
    field = page.one("#archive-source input")

    def offered() -> list[str]:
        page.one("h1").click()
        field.click()
        return [each.text.removeprefix("✓").strip() for each in page.all("[role=option]")]

    until(lambda: offered()[:3] == [".", "family", "family/1890s"])
    choose(page, "#archive-source", "family")
    until(lambda: page.one("#archive-out input").get_attribute("value") == "family")
    page.one("#archive-start").click()
    until(lambda: page.one("#archive-pause").is_enabled())
    other = Client(page_server.address, verbose=False, ssl_verify=False)  # a second visitor
    with pytest.raises(AppError, match="family is being restored, expected one archive at a time"):
        other.predict("family", "else", False, api_name="/archive_start")
    chromium.refresh()  # what the page knows is the server's
    page.one("[role=tab]")
    [tab] = [each for each in page.all("[role=tab]") if each.text == "Archive"]
    tab.click()
    until(lambda: page.one("#archive-source input").get_attribute("value") == "family")
    assert page.one("#archive-out input").get_attribute("value") == "family"
    until(lambda: page.text("#archive-status").startswith("family → family — done"))
    text = page.text("#archive-status")
    for says in ("5 of 6", "Faces restored\n15", "Could not be done\n1", "bad.jpg: expected a picture, got text"):
        assert says in text
    told = other.predict(api_name="/archive_status")
    names = ("photos", "results", "state", "done", "failed", "met", "faces")
    assert [told[name] for name in names] == ["family", "family", "finished", 5, 1, 6, 15]
    assert states(folder / "out" / "family") == {"done": 5, "failed": 1}
    assert [each["level"] for each in chromium.get_log("browser") if each["level"] == "SEVERE"] == []
    assert page.fetched_elsewhere() == []
    phone(chromium)
    assert page.run("return document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_the_board_is_looked_through_carried_out_and_undone(page_server: Served, chromium: Any, tmp_path: Path) -> None:
    folder = page_server.temporary.parent
    out = folder / "out" / "judged"
    source = folder / "in" / "judged"
    archive.save(group_photo(), source / EVIL)
    archive.restore(source, out, dataclasses.replace(RECIPE, face="1,2"))
    target = next(out.glob("*.jpg"))
    before = target.read_bytes()
    page = Page(chromium, page_server.address, "Archive")

    def known() -> bool:
        """Whether the photos' folder is known from the journal; the page's own loading may still undo what is typed."""
        choose(page, "#archive-out", "judged")
        time.sleep(1)
        return bool(page.one("#archive-source input").get_attribute("value") == "judged")

    until(known)
    until(lambda: page.text("#archive-status").startswith("judged — done"))
    page.one("#archive-look").click()
    frame = page.one("#archive-board iframe")
    chromium.switch_to.frame(frame)
    until(lambda: len(page.all("#grid button")) == 2)
    assert str(folder) not in page.run("return document.documentElement.outerHTML")
    page.one("#reject").click()
    page.one("#accept").click()
    assert page.text("#told").endswith("0 to be decided")
    chromium.switch_to.default_content()
    page.one("#archive-apply").click()
    until(lambda: "1 face taken back, in 1 photo." in page.text("#archive-told"))
    assert "facefix undo judged PHOTO --face N" in page.text("#archive-told")
    assert target.read_bytes() != before
    # what was carried out is spent, what was accepted stays decided
    chromium.switch_to.frame(page.one("#archive-board iframe"))
    until(lambda: len(page.all("#grid button")) == 1 and "accepted" in page.text("#grid"))
    chromium.switch_to.default_content()
    page.one("#archive-undo").click()
    until(lambda: "1 brought in again, in 1 photo." in page.text("#archive-told"))
    assert target.read_bytes() == before
    # the same by a program
    with Journal.open(out, write=False) as journal:
        [(row, _)] = journal.rows("done")
    told = {"facefix": "decisions", "version": 1, "decisions": [{"id": row.id, "face": 2, "decision": "reject"}]}
    client = Client(page_server.address, verbose=False, ssl_verify=False)
    said = client.predict("judged", json.dumps(told), api_name="/archive_apply")
    assert said == {"told": "1 face taken back, in 1 photo"}
    with Journal.open(out, write=False) as journal:
        report = journal.report(str(row.id))
    assert report is not None
    assert undo.accepted_in(report) == {1}
    for decisions, problem in (("", "expected decisions, got none"), ("{", "^decisions: expected .*, got no JSON")):
        with pytest.raises(AppError, match=problem):
            client.predict("judged", decisions, api_name="/archive_apply")
    with pytest.raises(AppError, match="way out of it"):
        client.predict("../in", json.dumps(told), api_name="/archive_apply")


@pytest.mark.slow
def test_a_server_that_ends_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    source = scans(tmp_path / "in" / "a", 6)
    with served(
        tmp_path / "web", "--input-dir", tmp_path / "in", "--output-dir", tmp_path / "out", "--device", "cpu"
    ) as server:
        client = Client(server.address, verbose=False, ssl_verify=False)
        told = client.predict("a", "b", False, restorer="pattern", sharp_faces="restore", api_name="/archive_start")
        assert told["state"] == "starting"
        out = tmp_path / "out" / "b"
        until(lambda: (out / FOLDER / "journal.sqlite").exists() and states(out).get("done"))
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.wait(timeout=PATIENCE_S)
    left = states(out)
    assert set(left) <= {"done", "queued"}
    assert list((out / FOLDER / "tmp").iterdir()) == []
    events = archive.restore(source, out)
    assert events.count("before") == left["done"]
    assert states(out) == {"done": 6}
