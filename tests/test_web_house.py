"""What the tabs share: what is kept and for how long, and settings as the page offers and says them."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive import group_photo
from PIL import Image
from web_server import until

pytest.importorskip("gradio")

import gradio as gr

from facefix import Recipe
from facefix.errors import PhotoRefused
from facefix.types import Photo
from facefix.web import house as rooms
from facefix.web import restore_tab
from facefix.web.house import House
from facefix.web.settings import controls, missing, offers, recipe_of
from facefix.web.words import in_page


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(parent=tmp_path)
    yield house
    house.close()


@dataclasses.dataclass
class Asker:
    session_hash: str | None = "anna"
    username: str | None = None


def test_what_is_not_used_any_more_is_removed(tmp_path: Path) -> None:
    house = House(parent=tmp_path, keep_seconds=1)
    upload = house.root / "0f" / "a.png"
    upload.parent.mkdir()
    upload.write_bytes(b"x")
    visit = house.visit(Asker())
    kept = house.received(upload, visit)
    assert kept.read_bytes() == b"x"
    assert house.visit(Asker()) is visit
    house.sweep()
    assert kept.exists()
    until(lambda: not kept.exists() and not upload.exists())
    assert house.visit(Asker()) is not visit
    house.close()
    assert list(tmp_path.iterdir()) == []


def test_what_another_server_left_is_removed_and_what_one_uses_is_not(tmp_path: Path) -> None:
    running = House(parent=tmp_path)
    for name in ("facefix-web-dead", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"x")
    long_ago = time.time() - 1000
    for folder in tmp_path.iterdir():
        os.utime(folder, (long_ago, long_ago))
    House(parent=tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([running.root.name, "other"])
    running.close()


def test_visitors_have_their_own_things_and_the_longest_unused_go(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, bert = house.visit(Asker("anna")), house.visit(Asker("bert"))
    assert anna.folder != bert.folder
    assert house.visit(Asker("anna", "user")) is not anna
    assert house.visit(Asker(None)) is not house.visit(Asker(None))
    monkeypatch.setattr(rooms, "_KEPT_BYTES", 100)
    house.keep(anna, "photo", "hers", 60)
    house.keep(bert, "photo", "his", 30)
    assert (anna.get("photo"), bert.get("photo")) == ("hers", "his")
    house.keep(bert, "photo", "a larger one", 60)
    assert (anna.get("photo"), bert.get("photo")) == (None, "a larger one")


def test_only_uploads_are_received(house: House, tmp_path: Path) -> None:
    visit = house.visit(Asker())
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"x")
    (house.root / "link.png").symlink_to(outside)
    for path in (outside, house.root / "link.png", house.root / ".." / "outside.png", house.root):
        with pytest.raises(PhotoRefused, match="expected a file that was uploaded here"):
            house.received(path, visit)
    house.max_bytes = 3
    (house.root / "big.png").write_bytes(b"xxxx")
    with pytest.raises(PhotoRefused, match=r"expected at most 0 MB, got 0\.0 MB"):
        house.received(house.root / "big.png", visit)


def test_only_what_is_usable_is_offered(house: House) -> None:
    found = offers(house, "restore")
    assert found["restorer"] == ["auto", *[w.name for w, _ in house.store.available("restorer")], "identity", "pattern"]
    assert "centerface" in found["detector"]
    here = {weight.name for weight, _ in house.store.present()}
    for name in set(found["detector"]) - {"auto"}:
        assert name in here
    lines = missing(house, ("restorer", "parser")).splitlines()
    assert len(lines) == sum(w.kind in ("restorer", "parser") and w.name not in here for w in house.store.catalogue)
    [line] = [line for line in lines if "parsing_parsenet" in line] or ["facefix weights fetch parsing_parsenet"]
    assert "facefix weights fetch parsing_parsenet" in line


def test_values_become_the_recipe_or_one_line(house: House) -> None:
    assert recipe_of(house, "restore", {"strength": 1, "min_face": 20.0}) == Recipe(min_face=20)
    for values, says in (
        ({"restorer": "/etc/passwd"}, "“Restorer”: expected one of auto, "),
        ({"min_face": -1}, "“Min face”: expected 0 to inf, got -1"),
        ({"strength": "much"}, "“Strength”: expected float, got 'much'"),
    ):
        with pytest.raises(gr.Error) as caught:
            recipe_of(house, "restore", values)
        assert caught.value.message.startswith(says)


def test_nothing_is_asked_for_that_the_page_refuses(house: House) -> None:
    """What the command takes besides names, it takes from the disk of whoever calls it."""
    placed = controls(house, "inpaint") | controls(house, "restore")
    told = {name: str(getattr(control, "info", "")) for name, control in placed.items()}
    assert told["strength"] == "How much of the restored face to take: 0 nothing, 1 all."
    for name, info in told.items():
        assert info, name
        assert not re.search("path|folder|file of|weights list|hub", info), f"{name}: {info}"


def test_options_are_told_as_the_page_calls_them() -> None:
    assert (
        in_page("--sharp-faces restore does it; see --max-pixels") == "“Sharp faces” restore does it; see --max-pixels"
    )


def test_networks_are_loaded_once_for_recipes_that_load_the_same(house: House) -> None:
    one, two = (house.facefix(Recipe(restorer="pattern", strength=strength)) for strength in (1.0, 0.5))
    assert one.restorers is two.restorers
    assert (one.recipe.strength, two.recipe.strength) == (1.0, 0.5)
    assert house.facefix(Recipe(restorer="identity")).restorers is not one.restorers
    assert np.ndim(house.facefix(Recipe(restorer="pattern"))(Photo(group_photo())).photo.raster) == 3


@pytest.fixture
def upload(house: House) -> str:
    path = house.root / "0f" / "group.jpg"
    path.parent.mkdir()
    Image.fromarray(group_photo()).save(path, quality=92)
    return str(path)


def test_a_run_ends_when_its_photo_is_taken_away(house: House, upload: str) -> None:
    told: list[Any] = []
    deed = restore_tab._Deed(house, ())

    def take_away(done: Any, desc: str, **_: Any) -> None:
        if desc == "Restoring":
            told.append(done)
            deed.forget(Asker())  # type: ignore[arg-type]

    with pytest.raises(gr.Error, match="expected a photo to work on, got it taken away"):
        deed.restore(upload, {"restorer": "pattern"}, Asker(), take_away)  # type: ignore[arg-type]
    assert told == [(1, 3)]
    assert house.visit(Asker()).get(restore_tab._WORK) is None


def test_what_is_blended_is_the_photo_that_is_kept_by_then(house: House, upload: str) -> None:
    deed = restore_tab._Deed(house, ())
    deed.restore(upload, {"restorer": "pattern"}, Asker(), lambda *_, **__: None)  # type: ignore[arg-type]
    visit = house.visit(Asker())
    with ThreadPoolExecutor() as pool:
        with visit.lock:
            blended = pool.submit(deed.reblend, {"1": 0}, Asker())  # type: ignore[arg-type]
            time.sleep(0.1)
            visit.drop(restore_tab._WORK)
        with pytest.raises(gr.Error, match="the photo is not kept any more"):
            blended.result()


def test_progress_tells_what_is_done(house: House, upload: str) -> None:
    told: list[tuple[Any, str]] = []
    deed = restore_tab._Deed(house, ())
    values = {"restorer": "pattern"}
    deed.restore(upload, values, Asker(), lambda done, desc, **_: told.append((done, desc)))  # type: ignore[arg-type]
    assert [desc for _, desc in told] == [
        "Reading the photo",
        "Waiting for the networks",
        "Looking for faces",
        *["Restoring"] * 3,
        "Writing",
    ]
    assert [done for done, desc in told if desc == "Restoring"] == [(1, 3), (2, 3), (3, 3)]
    work = house.visit(Asker()).get(restore_tab._WORK)
    assert work.folder.is_dir()
    # what is blended again and again does not fill the disk
    for strength in range(8):
        deed.reblend({"1": strength / 10}, Asker())  # type: ignore[arg-type]
    assert len([each for each in work.folder.iterdir() if each.is_dir()]) <= 4
    deed.forget(Asker())  # type: ignore[arg-type]
    assert not work.folder.exists()
