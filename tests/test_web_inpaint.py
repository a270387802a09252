"""The inpaint tab: what is painted is a hole in the photo's own pixels, and what comes back is the command's file."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Command
from PIL import Image, ImageCms

pytest.importorskip("gradio")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from selenium.webdriver import ActionChains
from web_server import Page, Served, phone, until

from facefix import Recipe, imagefile
from facefix.inpainting import Inpainter
from facefix.types import Photo
from facefix.web.house import House
from facefix.web.inpaint_tab import _choices, drawing_models
from facefix.web.painting import CANVAS_PX, hole_of, shrunk

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(parent=tmp_path, device="cpu")
    yield house
    house.close()


def photo(width: int, height: int, bits: int = 8, alpha: bool = False) -> Photo:
    shades = np.linspace(0, 2**bits - 1, width)[None, :, None] * np.linspace(0.4, 1, height)[:, None, None]
    raster = np.repeat(shades, 4 if alpha else 3, axis=2).astype(np.uint8 if bits == 8 else np.uint16)
    return imagefile.from_array(raster)


def layer(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """What the editor gives for a painted box."""
    x0, y0, x1, y1 = box
    painted = np.zeros((height, width, 4), np.uint8)
    painted[y0:y1, x0:x1] = (230, 0, 126, 255)
    return painted


@pytest.mark.parametrize(
    ("size", "canvas"), [((3000, 2000), (1024, 683)), ((500, 2048), (250, 1024)), ((64, 40), (64, 40))]
)
def test_the_hole_is_brought_back_to_the_photos_own_pixels(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    scene = photo(*size)
    assert shrunk(scene).shape == (canvas[1], canvas[0], 3)
    assert max(canvas) <= CANVAS_PX
    box = (canvas[0] // 4, canvas[1] // 4, canvas[0] // 2, canvas[1] // 2)
    hole = hole_of({"background": None, "layers": [layer(*canvas, box)], "composite": None}, scene)
    assert hole is not None
    assert hole.shape == (size[1], size[0])
    rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
    scale = np.array([size[0] / canvas[0], size[1] / canvas[1]])
    expected = np.array(box).reshape(2, 2) * scale  # edges, not centres
    got = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]])
    assert np.abs(got - expected).max() <= 0.75
    assert 0 <= (got[1] - got[0]).prod() - hole.sum() <= 8  # corners are rounded


def test_only_layers_count_and_several_are_one_hole() -> None:
    scene = photo(64, 40)
    first, second = layer(64, 40, (1, 1, 5, 5)), layer(64, 40, (30, 20, 34, 24))
    hole = hole_of({"background": first, "layers": [first, second], "composite": first}, scene)
    assert hole is not None
    assert hole.sum() == 32
    for nothing in (None, {}, {"layers": []}, {"layers": None}, {"layers": [np.zeros((40, 64, 4), np.uint8)]}):
        assert hole_of(nothing, scene) is None


def test_what_is_painted_on_is_upright_srgb_in_8_bits() -> None:
    deep = photo(2048, 512, bits=16, alpha=True)
    small = shrunk(deep)
    assert (small.shape, small.dtype) == ((256, 1024, 4), np.uint8)
    plain = shrunk(photo(2048, 512))
    assert np.abs(small[:, :, :3].astype(int) - plain).max() <= 2
    assert np.array_equal(shrunk(photo(64, 40)), photo(64, 40).raster)


def test_models_of_the_store_are_offered_by_name(house: House, tmp_path: Path) -> None:
    assert "sd" not in _choices(house)["engine"]
    assert {"auto", "cv2"} <= set(_choices(house)["engine"])
    for name, kind in (("sd15", "StableDiffusionInpaintPipeline"), ("xl", "StableDiffusionXLInpaintPipeline")):
        (tmp_path / "store" / name).mkdir(parents=True)
        (tmp_path / "store" / name / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (tmp_path / "store" / "broken").mkdir()
    (tmp_path / "store" / "broken" / "model_index.json").write_text("{")
    house.store = dataclasses.replace(house.store, folders=(tmp_path / "store",))
    assert drawing_models(house) == {"sd15": ("sd", tmp_path / "store/sd15"), "xl": ("sdxl", tmp_path / "store/xl")}
    assert _choices(house)["engine"][-2:] == ["sd", "sdxl"]
    assert {"sd15", "xl"} <= set(_choices(house)["model"])


def test_an_inpainter_for_another_recipe_does_what_a_fresh_one_does(portrait: np.ndarray) -> None:
    hole = np.zeros((512, 512), bool)
    hole[100:106, 200:260] = True
    first = Inpainter.load(Recipe(engine="cv2", restorer="pattern", strength=0.3), device="cpu")
    wanted = Recipe(engine="cv2", restorer="pattern", feather_px=9, dilate_px=2, sharp_faces="restore")
    shared, fresh = first.with_recipe(wanted)(portrait, hole), Inpainter.load(wanted, device="cpu")(portrait, hole)
    assert np.array_equal(shared.photo.raster, fresh.photo.raster)
    assert shared.report.recipe == fresh.report.recipe
    assert [note.outcome for note in shared.report.faces] == ["restored"]


def scan(folder: Path, portrait: np.ndarray) -> Path:
    """A 16-bit TIFF with a profile and a face."""
    path = folder / "scan.tif"
    scene = imagefile.from_array(portrait.astype(np.uint16) * 257)
    scene = dataclasses.replace(scene, meta=dataclasses.replace(scene.meta, format="TIFF", icc=PROFILE))
    imagefile.write(scene, path)
    return path


def fill(client: Client, path: Path, mask: Path | None, **settings: Any) -> tuple[Any, ...]:
    given = None if mask is None else handle_file(mask)
    told = client.predict(handle_file(path), None, given, engine="cv2", **settings, api_name="/inpaint")
    return tuple(told)


@pytest.mark.usefixtures("temporary")
@pytest.mark.slow
def test_a_program_gets_the_commands_bytes_and_one_line_where_it_cannot(
    page_server: Served, portrait: np.ndarray, tmp_path: Path, facefix: Command
) -> None:
    path, mask = scan(tmp_path, portrait), tmp_path / "hole.png"
    stroke = np.zeros((512, 512), np.uint8)
    cv2.line(stroke, (170, 60), (270, 170), 255, 3)
    Image.fromarray(stroke).save(mask)
    client = Client(page_server.address, verbose=False, ssl_verify=False, download_files=str(tmp_path / "got"))
    [file], [report] = fill(client, path, mask)
    done = facefix("inpaint", path, mask, "-o", tmp_path / "by command.tif", "--engine", "cv2", "--device", "cpu")
    assert done.code == 0, done.err
    assert Path(file).name == "scan.facefix.tif"
    assert Path(file).read_bytes() == (tmp_path / "by command.tif").read_bytes()
    assert imagefile.read(file).meta.bits == 16
    assert imagefile.read(file).meta.icc == PROFILE
    assert "1 of 1 faces restored" in report["summary"]
    Image.new("L", (20, 10), 255).save(tmp_path / "small.png")
    Image.new("L", (512, 512)).save(tmp_path / "empty.png")
    Image.new("1", (512, 512), 1).save(tmp_path / "full.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name, says in (
        ("small.png", "scan.tif: the mask does not fit: expected 512x512 px as the photo, got 20x10; make one"),
        ("empty.png", "scan.tif: the mask is empty: no pixel of it is at least half white and opaque; draw"),
        ("full.png", "scan.tif: the hole covers the whole photo, with “Dilate px” and “Feather px” around it; leave"),
        ("broken.png", "broken.png: expected a picture, got text"),
        (
            None,
            "scan.tif: expected a mask, got none, and every pixel of the scene is opaque; give a mask, or “Outpaint”",
        ),
    ):
        with pytest.raises(AppError) as caught:
            fill(client, path, None if name is None else tmp_path / name, faces=False)
        assert says in str(caught.value)
        assert str(page_server.temporary) not in str(caught.value)
    for settings, says in (
        ({"outpaint": "900%,0,0,900%"}, "expected at most 8 megapixels when it has grown, got 26; choose a smaller"),
        ({"restorer": str(tmp_path / "x.pth")}, "x.pth is not in the list of choices"),
    ):
        with pytest.raises(AppError, match=says):
            fill(client, path, mask, **settings)
    _, [report] = fill(client, path, None, faces=False, outpaint="10,0,10%,0")
    assert report["summary"].endswith("573 × 512 px.")


@pytest.mark.slow
def test_a_hole_is_painted_filled_compared_and_downloaded(
    page_server: Served, chromium: Any, portrait: np.ndarray, tmp_path: Path, facefix: Command
) -> None:
    path = tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[0x010E] = "Summer 1931"
    large = cv2.resize(portrait[:300], (1200, 703))
    Image.fromarray(large).save(path, quality=90, icc_profile=PROFILE, exif=exif)
    page = Page(chromium, page_server.address, "Inpaint")
    assert "Nothing filled yet." in page.text("#inpaint-compare")
    assert not page.one("#inpaint-start").is_enabled()
    page.upload("#inpaint-photo", path)
    until(lambda: page.all("#inpaint-editor canvas") and page.one("#inpaint-start").is_enabled())
    canvas = page.one("#inpaint-editor canvas")
    page.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    time.sleep(1)  # the editor fits the picture in its own time
    ActionChains(chromium, duration=20).move_to_element_with_offset(canvas, -30, 0).click_and_hold().move_by_offset(
        20, 0
    ).move_by_offset(20, 0).move_by_offset(20, 0).release().perform()
    asked = "return performance.getEntriesByType('resource').filter(each => each.name.includes('/queue/join')).length"

    def quiet() -> bool:
        known = page.run(asked)
        time.sleep(1)
        return bool(page.run(asked) == known)

    until(quiet)  # a busy machine may still be sending what was painted
    before = page.run(asked)
    ActionChains(chromium).double_click(page.one("#inpaint-start")).perform()
    until(lambda: page.all("#inpaint-compare img.after"))
    assert page.run(asked) == before + 1
    assert "px filled with cv2" in page.text("#inpaint-compare")
    downloads = Path(chromium.capabilities["chrome"]["userDataDir"]).parent / "downloads"
    for button in ("#inpaint-download", "#inpaint-keep-mask"):
        page.one(button).click()
    files = [downloads / "large.facefix.jpg", downloads / "large.mask.png"]
    until(lambda: all(file.exists() and file.stat().st_size for file in files))
    hole = np.asarray(Image.open(files[1]))
    assert hole.shape == (703, 1200)
    assert set(np.unique(hole)) == {0, 255}
    rows, columns = np.nonzero(hole)
    assert abs(columns.mean() - 600) < 6
    assert abs(rows.mean() - 351) < 6
    assert np.ptp(columns) > 2 * np.ptp(rows)
    done = facefix("inpaint", path, files[1], "-o", tmp_path / "by command.jpg", "--device", "cpu")
    assert done.code == 0, done.err
    assert files[0].read_bytes() == (tmp_path / "by command.jpg").read_bytes()
    # the line is a control of its own, by keyboard, too
    line = page.one("#inpaint-compare input[type=range]")
    line.send_keys("\ue012" * 3)
    assert float(line.get_attribute("value")) < 50
    assert [each["message"] for each in chromium.get_log("browser") if each["level"] == "SEVERE"] == []
    assert page.fetched_elsewhere() == []
    phone(chromium)
    assert page.run("return document.documentElement.scrollWidth") <= 390
