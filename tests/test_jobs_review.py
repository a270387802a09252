"""The board: what is in it, that names cannot do anything in it, and that a real browser looks through it from disk."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archive
import numpy as np
import pytest
import recogniser
from archive import RECIPE, group_photo, row_at
from conftest import Command
from PIL import Image
from web_server import chromium

from facefix.errors import JournalError
from facefix.jobs import review, undo
from facefix.jobs.database import FOLDER
from facefix.jobs.journal import Journal

HOSTILE = '<img src=x onerror="document.title=1">&amp;\u202egpj.png'
EVIL = "<!--<script>document.title=2.jpg"
LATIN = os.fsdecode(b"caf\xe9.jpg")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds scans and out: in each of three photos two faces are restored and one is skipped."""
    folder = tmp_path_factory.mktemp("board")
    sources = folder / "scans"
    archive.save(group_photo(), sources / HOSTILE)
    archive.save(group_photo(), sources / LATIN, quality=90)
    archive.save(group_photo()[:, ::-1], sources / "a group.jpg", quality=75)
    archive.save(np.full((64, 64, 3), 120, np.uint8), sources / "shore.jpg")
    (sources / EVIL).write_bytes(b"nothing of a photo")
    archive.restore(sources, folder / "out", dataclasses.replace(RECIPE, face="1,2"))
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of which the first photo was restored without a recogniser, and the second with one."""
    folder = tmp_path_factory.mktemp("compared")
    recipe = dataclasses.replace(RECIPE, face="1,2")
    archive.save(group_photo(), folder / "scans" / "before.png")
    archive.restore(folder / "scans", folder / "out", recipe)
    archive.save(group_photo()[:, ::-1], folder / "scans" / "since.png")
    with pytest.MonkeyPatch.context() as patch:
        recogniser.put(folder / "weights", patch)
        archive.restore(folder / "scans", folder / "out", recipe)
    return folder / "out"


def board(out: Path, path: Path | None = None, **options: int) -> list[Path]:
    with Journal.open(out, write=False) as journal:
        return review.write_board(journal, path, **options)


def data_in(path: Path) -> dict[str, Any]:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(text)


def pictures_in(path: Path) -> list[Image.Image]:
    stored = re.findall(r'<script type="text/plain" id="t\d+">(.*?)</script>', path.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in stored]


def test_one_photo_is_counted_as_one(tmp_path: Path) -> None:
    archive.save(np.full((64, 64, 3), 120, np.uint8), tmp_path / "scans" / "shore.jpg")
    archive.restore(tmp_path / "scans", tmp_path / "out")
    [path] = board(tmp_path / "out")
    assert data_in(path)["sums"] == "1 photo done, 1 without a face"


def test_every_face_and_failed_photo_is_there_with_its_reason(out: Path) -> None:
    with Journal.open(out) as journal:
        undo.decide(journal, row_at(journal, "a group.jpg"), reject={2})
    [path] = board(out)
    assert path == out / FOLDER / "review.html"
    told = data_in(path)
    assert told["sums"] == "4 photos done, 1 without a face; 1 failed"
    names = [name for _, name, _ in told["photos"]]
    kinds = sorted((names[entry[0]], entry[1], entry[2], told["reasons"][entry[6]]) for entry in told["entries"])
    skipped = (3, 2, "not chosen by --face 1,2")
    escaped = HOSTILE.replace("\u202e", "\\u202e")
    expected = [(name, *face) for name in (escaped, "caf\\udce9.jpg") for face in ((1, 0, ""), (2, 0, ""), skipped)]
    expected += [("a group.jpg", *face) for face in ((1, 0, ""), (2, 1, ""), skipped)]
    [failed] = [entry for entry in kinds if entry[2] == 4]
    assert failed[:2] == (EVIL, 0)
    assert failed[3].startswith("expected a picture, got text")
    assert kinds == sorted([*expected, failed])


def test_most_changed_first_and_the_picture_is_before_over_after(out: Path) -> None:
    [path] = board(out, thumb_px=64)
    entries = data_in(path)["entries"]
    changes = [entry[3] for entry in entries if entry[3] is not None]
    assert len(changes) == 6
    assert changes == sorted(changes, reverse=True)
    pictures = pictures_in(path)
    assert [entry[7] for entry in entries if entry[7] is not None] == list(range(6))
    for entry, picture in zip(entries, pictures, strict=False):
        width, height = entry[8:10]
        shrink = 64 / max(width, height)
        assert picture.size == (round(width * shrink), 2 * round(height * shrink))
        stored = [np.asarray(Image.open(out / FOLDER / name).resize((24, 24))).astype(int) for name in entry[10:12]]
        half = picture.size[1] // 2
        for number, kept in enumerate(stored):
            part = picture.crop((0, number * half, picture.size[0], (number + 1) * half)).resize((24, 24))
            assert np.abs(np.asarray(part).astype(int) - kept[..., :3]).mean() < 6


def test_identity_stands_where_it_was_measured(compared: Path, out: Path, tmp_path: Path) -> None:
    told = data_in(board(compared, tmp_path / "board.html")[0])
    alike = {(told["photos"][entry[0]][1], entry[1]): entry[12] for entry in told["entries"]}
    assert [alike["before.png", face] for face in (1, 2, 3)] == [None] * 3
    assert alike["since.png", 3] is None
    for face in (1, 2):
        assert -1 <= alike["since.png", face] < 1
    # a report of an earlier version says nothing of it
    with Journal.open(out) as journal:
        row = row_at(journal, "a group.jpg")
        report = dict(archive.report_at(journal, "a group.jpg"))
        report["faces"] = [{key: value for key, value in face.items() if key != "identity"} for face in report["faces"]]
        assert row.id is not None
        journal.amend(row.id, report)
    assert {entry[12] for entry in data_in(board(out)[0])["entries"]} == {None}


def test_nothing_from_outside_ends_a_block_or_gets_into_the_markup(out: Path) -> None:
    [path] = board(out)
    page = path.read_text()
    for name in (HOSTILE, EVIL, "<img", "<!--"):
        assert name not in page
    template = Path(review.__file__).with_name("board.html").read_text()
    assert page.count("<") == template.count("<") + 2 * len(pictures_in(path))
    assert "default-src 'none'; img-src data:;" in page
    assert "unsafe" not in page
    assert not re.findall(r"https?:|//|@import|url\(", template)


def test_many_faces_go_to_several_boards_that_know_each_other(out: Path, tmp_path: Path) -> None:
    paths = board(out, tmp_path / "look.html", faces=4)
    assert [path.name for path in paths] == ["look.html", "look-2.html"]
    first, second = map(data_in, paths)
    assert [len(pictures_in(path)) for path in paths] == [4, 2]
    assert first["parts"] == second["parts"] == ["look.html", "look-2.html"]
    assert (first["part"], second["part"], first["beside"]) == (0, 1, False)
    assert len(first["entries"]) == 4 + 3 + 1  # and what has no picture
    assert [entry[7] for entry in second["entries"]] == [0, 1]
    assert min(entry[3] for entry in first["entries"][:4]) >= max(entry[3] for entry in second["entries"])


def test_missing_pictures_leave_their_places(out: Path) -> None:
    [path] = board(out)
    gone = data_in(path)["entries"][1]
    (out / FOLDER / gone[10]).unlink()
    board(out)
    assert len(pictures_in(path)) == 5
    assert 'id="t0"' in path.read_text()
    assert 'id="t1"' not in path.read_text()
    assert 'id="t2"' in path.read_text()


def test_a_board_that_cannot_be_written_leaves_nothing(out: Path, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"nowhere.*No such file"):
        board(out, tmp_path / "nowhere" / "board.html")
    (tmp_path / "taken").mkdir()
    with pytest.raises(JournalError, match="taken"):
        board(out, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "taken"]
    with (
        Journal.open(tmp_path / "empty", create=True) as journal,
        pytest.raises(JournalError, match="no photo was fin"),
    ):
        review.write_board(journal)


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_by_seven_to_one() -> None:
    style = Path(review.__file__).with_name("board.html").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", style))
    for ink in ("ink", "dim", "yes", "no", "act", "focus"):
        for paper in ("paper", "card"):
            lighter, darker = luminance(colours[ink]), luminance(colours[paper])
            assert (lighter + 0.05) / (darker + 0.05) > 7, (ink, paper)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Headless Chromium that saves to tmp_path/downloads."""
    with chromium(tmp_path) as driver:
        yield driver


class Page:
    """The board in the browser, as a person meets it."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        driver.get(path.as_uri())

    def press(self, keys: str) -> None:
        self.driver.find_element("tag name", "body").send_keys(keys)

    def text(self, id: str) -> str:
        return str(self.driver.find_element("id", id).text)

    def choose(self, id: str, starts: str) -> None:
        options = self.driver.find_elements("css selector", f"#{id} option")
        [option] = [each for each in options if each.text.startswith(starts)]
        option.click()

    def cards(self) -> list[str]:
        return [card.text for card in self.driver.find_elements("css selector", "#grid button")]

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)


FETCHED = "return performance.getEntriesByType('resource').map(e => e.name).filter(name => !name.startsWith('data:'))"
LOADED = "return [...document.images].every(image => image.complete && image.naturalWidth > 50)"
OFFSET = """const top = where => document.querySelector(where).getBoundingClientRect().top;
return top('#view img') - top('#view .face')"""


@pytest.mark.slow
def test_a_browser_flips_decides_exports_and_the_export_is_carried_out(
    out: Path, tmp_path: Path, browser: Any, facefix: Command
) -> None:
    (tmp_path / "elsewhere").mkdir()
    [path] = board(out)
    path = path.rename(tmp_path / "elsewhere" / "board.html")  # it needs nothing beside it
    page = Page(browser, path)
    assert browser.get_log("browser") == []
    assert (
        page.run("return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))")
        == []
    )
    # every picture is there, and the flip shows its other half
    assert len(page.cards()) == 6
    assert page.run(LOADED)
    assert "after" in page.text("view")
    assert page.run(OFFSET) < -50
    page.press(" ")
    assert "before" in page.text("view")
    assert page.run(OFFSET) == 0
    browser.find_element("id", "view").click()
    assert "after" in page.text("view")
    # by keyboard: reject the first, accept the second, and take the third decision back
    first, second = page.run("return shown.slice(0, 2).map(entry => [entry.id, entry.face])")
    page.press("rara")
    page.press("\ue012u")  # left, no decision
    assert page.text("told").endswith("3 to be decided")
    assert ["rejected" in card for card in page.cards()[:3]] == [True, False, True]
    assert "accepted" in page.cards()[1]
    # what is remembered outlives the page; what was skipped or failed has its reason
    for _ in range(10):  # a browser stores in its own time, on a busy machine after the next page has asked
        browser.refresh()
        if "\u2717 rejected" in page.cards()[0]:
            break
        time.sleep(0.5)
    assert "\u2717 rejected" in page.cards()[0]
    page.choose("show", "skipped faces (3)")
    assert [card.count("not chosen by --face 1,2") for card in page.cards()] == [1, 1, 1]
    page.choose("show", "failed photos (1)")
    assert page.text("name") == EVIL
    assert "expected a picture, got text" in page.text("facts")
    page.choose("show", "restored faces (6)")
    page.choose("sort", "name")
    assert page.cards()[0].startswith("<img src=x onerror=")
    browser.find_element("id", "find").send_keys("GROUP")
    assert len(page.cards()) == 2
    assert page.run("return document.title") == "facefix review"
    # on a phone nothing sticks out
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.run("return document.documentElement.scrollWidth") <= 360
    page.run("document.querySelectorAll('#grid button')[1].click()")
    assert page.run("return [current, Math.round(at('view').getBoundingClientRect().top)]") == [1, 0]
    page.run("at('back').click()")
    assert page.run("return [current, Math.round(at('view').getBoundingClientRect().top)]") == [0, 0], (
        "the picture stays in sight"
    )
    browser.find_element("id", "export").click()
    assert browser.get_log("browser") == []
    exported = tmp_path / "downloads" / "decisions.json"
    waited_until = time.monotonic() + 20
    while not exported.exists() and time.monotonic() < waited_until:
        time.sleep(0.05)
    assert review.read_decisions(exported)[first[0]][first[1]] is False
    assert review.read_decisions(exported)[second[0]][second[1]] is True
    for command, says in (
        (("apply", out, exported), "2 faces taken back, in "),
        (("apply", out, exported), "0 faces taken back, in 0 photos"),
        (("verify", out), "4 results as written, and like their sources outside the restored faces"),
    ):
        done = facefix(*command)
        assert (done.code, says in done.out) == (0, True), done


@pytest.mark.slow
def test_focus_and_keys_work_together(out: Path, browser: Any) -> None:
    [path] = board(out)
    page = Page(browser, path)
    browser.find_elements("css selector", "#grid button")[2].click()
    assert page.run("return current") == 2
    focused = "return document.activeElement.dataset.index"
    browser.switch_to.active_element.send_keys("r")
    assert page.run("return current") == 3
    assert page.run(focused) == "3"
    browser.switch_to.active_element.send_keys(" ")
    assert "before" in page.text("view")
    browser.find_element("id", "accept").send_keys(" ")  # a button that has the focus is pressed, not flipped
    assert "accepted" in page.cards()[3]
    browser.find_element("id", "find").send_keys("arb")  # letters in a field are letters
    assert page.run("return Object.keys(memory).length") == 2
    browser.find_element("id", "find").send_keys("\ue003\ue003\ue003\ue00c")  # deleted, and left with Escape
    page.press("b")
    assert page.run("return document.querySelectorAll('#grid .face:not(.after)').length") == 6
    assert page.run("return document.querySelector('a[href*=before]').protocol") == "file:"
    page.run("save()")
    assert page.text("told").startswith("2 decisions exported as decisions.json; ")
    page.run("go(2); decide(''); save()")
    assert page.text("told").startswith("1 decision exported as decisions.json; ")


@pytest.mark.slow
def test_the_least_alike_come_first_and_those_not_measured_last(
    compared: Path, out: Path, tmp_path: Path, browser: Any
) -> None:
    page = Page(browser, board(compared, tmp_path / "board.html")[0])
    page.choose("sort", "identity, least alike first")
    marks = [card.split("\n")[-1] for card in page.cards()]
    assert [mark.startswith("identity ") for mark in marks] == [True] * 4
    assert marks[2:] == ["identity not measured"] * 2
    first, second = (float(mark.removeprefix("identity ")) for mark in marks[:2])
    assert -1 <= first <= second < 1
    order = page.run("return shown.map(entry => entry.identity)")
    assert order[0] <= order[1]
    assert order[2:] == [None, None]
    assert f"{first:.2f}, where 1 is as before" in page.text("facts")
    page.press("\ue010")  # to the end
    assert "identity\nnot measured" in page.text("facts")
    page.choose("sort", "change")
    assert all("change" in card for card in page.cards())
    # where no face has the number, the choice is there, says why, and cannot be taken
    page = Page(browser, board(out)[0])
    options = browser.find_elements("css selector", "#sort option")
    [option] = [each for each in options if each.text.startswith("identity")]
    assert (option.is_enabled(), "the run had no sface weights" in option.text) == (False, True)
    option.click()
    assert page.run("return at('sort').value") == "change"
    assert "identity" not in page.text("facts")
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.run("return document.documentElement.scrollWidth") <= 360
    assert browser.get_log("browser") == []
