"""The tab for one photo, in a real browser in front of a real server."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import web_server
from archive import group_photo
from conftest import Command
from PIL import Image
from web_server import Page, Served, phone, until

pytest.importorskip("gradio")

from facefix import imagefile
from facefix.types import Meta, Photo
from facefix.web.compare import shown

pytestmark = pytest.mark.slow

CHOSEN = """return [...document.querySelectorAll('#restore-compare .faces li')].map(row =>
    [row.className, row.querySelector('output')?.textContent ?? ''])"""
AFTER = "return document.querySelector('#restore-compare img.after')?.src ?? ''"
LATE_END = """const fetched = window.fetch;
window.fetch = async (...asked) => {
    const answer = await fetched(...asked);
    if (!String(asked[0].url ?? asked[0]).includes('/queue/data')) return answer;
    const late = new TransformStream({async transform(part, given) {
        const ends = new TextDecoder().decode(part).includes('close_stream');
        if (ends) await new Promise(done => setTimeout(done, 3000));
        given.enqueue(part);
    }});
    return new Response(answer.body.pipeThrough(late), answer);
}"""
"""A line that is slow just where the server ends a stream of events."""
WIDTHS = "return [...document.querySelectorAll('#restore-compare img')].map(each => each.naturalWidth)"


def save(path: Path, photo: np.ndarray, **options: Any) -> Path:
    exif = Image.Exif()
    exif[0x010E] = "three of one"
    Image.fromarray(photo).save(path, exif=exif, **options)
    return path


@pytest.fixture(scope="module")
def group_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "our group.jpg"
    return save(path, group_photo(), quality=88, dpi=(300, 300))


def open_tab(driver: Any, server: Served) -> Page:
    return Page(driver, server.address, "Restore")


def restored(page: Page, path: Path) -> str:
    """Upload the photo; the address of the picture after, when it is there."""
    page.upload("#restore-photo", path)
    return until(lambda: page.run(AFTER))


def renewed(page: Page, old: str) -> str:
    """The address of the picture after, when it is another."""
    return until(lambda: (page.run(AFTER) != old or None) and page.run(AFTER))


def download(page: Page) -> bytes:
    """What a click on the download button saves."""
    folder = Path(page.driver.capabilities["chrome"]["userDataDir"]).parent / "downloads"
    shutil.rmtree(folder, ignore_errors=True)
    page.one("#restore-download").click()
    [path] = until(lambda: list(folder.glob("*.facefix.*")) if not list(folder.glob("*.crdownload")) else [])
    assert page.text("#restore-download") == f"Download {path.name}"
    return path.read_bytes()


def by_command(facefix: Command, source: Path, out: Path, *options: object) -> bytes:
    done = facefix("restore", source, "-o", out, "--device", "cpu", "--quiet", *options)
    assert done.code == 0, done.err
    return out.read_bytes()


def test_drop_compare_choose_and_download(
    page_server: Served, chromium: Any, group_file: Path, facefix: Command, tmp_path: Path
) -> None:
    page = open_tab(chromium, page_server)
    assert "No photo yet" in page.text("#restore-compare")
    assert not [each for each in page.all("#restore-start, #restore-download") if each.is_displayed()]
    first = restored(page, group_file)
    # full resolution, faces as boxes with what became of them
    until(lambda: page.run(WIDTHS) == [500, 500])
    assert page.text(".summary") == "3 of 3 faces restored with facefix-lite-256. 500 × 240 px."
    boxes = page.all("#restore-compare .sheet .face")
    assert [box.text for box in boxes] == ["1", "2", "3"]
    assert boxes[0].get_attribute("aria-label").startswith("Face 1, restored · facefix-lite-256")
    assert page.run(CHOSEN) == [["on", "100 %"]] * 3
    sheet, box = (each.rect for each in (page.one(".sheet"), boxes[2]))
    assert 0.7 < (box["x"] - sheet["x"]) / sheet["width"] < 0.8
    # the line, by keyboard
    page.one(".where").send_keys("\ue011")  # Home
    assert page.run("return document.querySelector('img.after').style.clipPath") == "inset(0px 0px 0px 0%)"
    page.one(".where").send_keys("\ue014\ue014")
    assert page.run("return document.querySelector('img.after').style.clipPath") == "inset(0px 0px 0px 1%)"
    assert download(page) == by_command(facefix, group_file, tmp_path / "all.jpg")
    # a click on a box leaves the face, another takes it again
    boxes[1].click()
    second = renewed(page, first)
    assert page.run(CHOSEN) == [["on", "100 %"], ["off", "left"], ["on", "100 %"]]
    until(lambda: page.text(".summary").startswith("2 of 3 faces"))
    assert boxes[1].get_attribute("aria-pressed") == "false"
    without = until(lambda: (got := download(page)) != (tmp_path / "all.jpg").read_bytes() and got)
    assert without == by_command(facefix, group_file, tmp_path / "two.jpg", "--face", "1,3")
    assert Image.open(io.BytesIO(without)).getexif()[0x010E] == "three of one"
    assert Image.open(io.BytesIO(without)).info["dpi"] == (300, 300)
    # by keyboard: the tick with space, the strength with arrows
    tick = page.all(".faces li input[type=checkbox]")[1]
    tick.send_keys(" ")
    third = renewed(page, second)
    until(lambda: page.text(".summary").startswith("3 of 3 faces"))
    page.run("document.querySelectorAll('.faces li input[type=range]').forEach(each => { each.value = 51 })")
    for each in page.all(".faces li input[type=range]"):
        each.send_keys("\ue012")
    fourth = renewed(page, third)
    assert page.run(CHOSEN) == [["on", "50 %"]] * 3
    half = by_command(facefix, group_file, tmp_path / "half.jpg", "--strength", 0.5)
    until(lambda: download(page) == half)
    page.one(".head .none").click()
    renewed(page, fourth)
    # nothing is left of the restoration: the file is the photo's own, byte for byte
    until(lambda: download(page) == group_file.read_bytes())
    assert page.fetched_elsewhere() == []
    severe = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    # Gradio asks how far an upload is that is there already
    assert [message for message in severe if "upload_progress" not in message] == []


def test_a_photo_that_is_given_at_once_is_heard_of(page_server: Served, chromium: Any, group_file: Path) -> None:
    slow = chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LATE_END})
    try:
        restored(open_tab(chromium, page_server), group_file)
    finally:
        chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", slow)


def test_settings_are_the_commands_and_a_new_run_takes_them(
    page_server: Served, chromium: Any, group_file: Path, facefix: Command, tmp_path: Path
) -> None:
    page = open_tab(chromium, page_server)
    first = restored(page, group_file)
    page.one("#restore-settings button").click()
    assert "How much of the restored face to take" in page.text("#restore-strength")
    page.one("#restore-scale input").click()
    [choice] = until(lambda: [each for each in page.all("[role=option]") if each.text.strip() == "2"])
    choice.click()
    page.one("#restore-start").click()
    renewed(page, first)
    until(lambda: page.run(WIDTHS)[1] == 1000)
    assert download(page) == by_command(facefix, group_file, tmp_path / "large.jpg", "--scale", 2)
    page.one("#restore-missing button").click()
    assert "facefix weights fetch gpen-bfr-512" in until(lambda: page.text("#restore-missing"))


def test_a_wrong_file_is_one_line_and_the_page_goes_on(
    page_server: Served, chromium: Any, group_file: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "<b>notes<b>.jpg"
    wrong.write_text("nothing of a photo")
    page = open_tab(chromium, page_server)
    page.upload("#restore-photo", wrong)
    [told] = until(page.told)
    assert "expected a picture, got text" in told
    assert "Traceback" not in told
    assert page.all(".toast-body b") == []
    page.one("#restore-photo button[aria-label=Clear], #restore-photo button[aria-label='Clear']").click()
    restored(page, group_file)
    assert page.text(".summary").startswith("3 of 3 faces")


def test_two_at_once_do_not_mix(page_server: Served, chromium: Any, group_file: Path, tmp_path: Path) -> None:
    single = save(tmp_path / "single.png", group_photo()[:, 300:])
    page = open_tab(chromium, page_server)
    # in a browser of its own: a window behind another is not drawn, and its driver may wait for that for ever
    with web_server.chromium(tmp_path) as second:
        other = open_tab(second, page_server)
        other.upload("#restore-photo", single)
        page.upload("#restore-photo", group_file)
        before, old = until(lambda: page.run(AFTER)), until(lambda: other.run(AFTER))
        assert (len(page.all(".sheet .face")), len(other.all(".sheet .face"))) == (3, 1)
        other.one(".sheet .face").click()
        renewed(other, old)
        assert download(other) == single.read_bytes()
    assert page.run(AFTER) == before
    assert page.run(CHOSEN) == [["on", "100 %"]] * 3


def test_another_photo_is_given_while_one_is_restored(
    page_server: Served, chromium: Any, group_file: Path, tmp_path: Path
) -> None:
    many = save(tmp_path / "many.png", np.tile(group_photo(), (3, 2, 1)))
    page = open_tab(chromium, page_server)
    page.upload("#restore-photo", many)
    until(lambda: "Looking for faces" in page.text("#restore-compare"))
    page.one("#restore-photo button[aria-label=Clear]").click()
    restored(page, group_file)
    assert (page.text(".summary")[:6], page.text("#restore-download")) == ("3 of 3", "Download our group.facefix.jpg")
    assert page.told() == []


def test_what_browsers_cannot_show_is_shown_and_no_face_is_told(
    page_server: Served, chromium: Any, facefix: Command, tmp_path: Path
) -> None:
    deep = tmp_path / "deep.tif"
    imagefile.write(Photo(group_photo(16), Meta(format="TIFF", bits=16)), deep)
    page = open_tab(chromium, page_server)
    restored(page, deep)
    until(lambda: page.run(WIDTHS) == [500, 500])
    got = download(page)
    assert got == by_command(facefix, deep, tmp_path / "deep.facefix.tif")
    blank = tmp_path / "shore.png"
    Image.new("RGB", (64, 48), (90, 120, 140)).save(blank)
    page = open_tab(chromium, page_server)
    restored(page, blank)
    assert page.text(".summary") == "No face was found. 64 × 48 px."
    assert page.all(".faces") == []


def test_notes_of_the_report_are_shown(page_server: Served, chromium: Any, tmp_path: Path) -> None:
    pages = tmp_path / "pages.tif"
    Image.fromarray(group_photo()).save(pages, save_all=True, append_images=[Image.new("RGB", (500, 240))])
    page = open_tab(chromium, page_server)
    restored(page, pages)
    assert "first" in page.text(".notes li")


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable_and_fits_a_phone(page_server: Served, chromium: Any, group_file: Path, dark: bool) -> None:
    page = Page(chromium, page_server.address + ("?__theme=dark" if dark else "?__theme=light"), "Restore")
    restored(page, group_file)
    try:
        phone(chromium)
        assert page.run("return document.documentElement.scrollWidth") <= 390
        wide = "return document.querySelector('#restore-compare .sheet').getBoundingClientRect().width"
        assert page.run(wide) > 280
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    for css in (".what", ".hint", ".summary", ".every", "#facefix-head p", "#facefix-foot", "[role=tab].selected"):
        ink, paper = page.run(COLOURS, css)
        assert contrast(ink, paper) > 4.5, (css, ink, paper)


COLOURS = """let at = document.querySelector(arguments[0]);
const ink = getComputedStyle(at).color;
const clear = colour => colour === 'rgba(0, 0, 0, 0)' || colour === 'transparent';
while (at.parentElement && clear(getComputedStyle(at).backgroundColor)) at = at.parentElement;
const paper = getComputedStyle(at).backgroundColor;
return [ink, clear(paper) ? 'rgb(255, 255, 255)' : paper]"""


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance of rgb(r, g, b)."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_every_kind_of_photo_has_a_picture_that_browsers_show(tmp_path: Path) -> None:
    colour, gray = group_photo(16), group_photo(16)[..., :1].repeat(3, axis=2)
    alpha = np.full(colour.shape[:2], 40000, np.uint16)
    for name, photo, mode in (
        ("deep", Photo(colour, Meta(bits=16)), "RGB"),
        ("gray", Photo(gray, Meta(bits=16, gray=True)), "L"),
        ("clear", Photo(colour, Meta(bits=16), alpha), "RGBA"),
        ("both", Photo(gray, Meta(bits=16, gray=True), alpha), "LA"),
    ):
        path = shown(photo, tmp_path, name)
        picture = Image.open(path)
        assert (picture.mode, picture.size) == (mode, (500, 240))
        assert picture.format == ("PNG" if photo.alpha is not None else "JPEG")
        middle = np.asarray(picture.convert("RGB")).astype(int)
        assert np.abs(middle - photo.raster // 257).mean() < 3
    written = tmp_path / "written.webp"
    assert shown(Photo(group_photo()), tmp_path, "x", written) is written
    assert shown(Photo(group_photo()), tmp_path, "x", written.with_suffix(".tif")) == tmp_path / "x.jpg"
