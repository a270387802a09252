"""The face engine: what it shows its network, what it takes from it, and where it refuses."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mixing_gpen import COPY, of_pixels, saved

from facefix import Recipe, detectors
from facefix.errors import PhotoRefused, WeightsInvalid
from facefix.inpaint import gpen_face
from facefix.inpainting import Inpainter
from facefix.types import Meta, Photo
from facefix.weights import Store


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> gpen_face.FaceFiller:
    return engine(tmp_path_factory.mktemp("weights"), match=True)


def engine(
    folder: Path, matrix: np.ndarray = COPY, offset: tuple[float, ...] = (0, 0, 0), *, match: bool = False
) -> gpen_face.FaceFiller:
    path = saved(of_pixels(matrix, offset, size=128), folder / "GPEN-Inpainting-1024.pth")
    filler = gpen_face.load(path, detector=detectors.load("centerface"), device="cpu", precision="float32")
    filler.match = match
    return filler


@pytest.fixture
def scene(portrait: np.ndarray) -> np.ndarray:
    return portrait.astype(np.float32) / 255


def deep(hole: np.ndarray) -> np.ndarray:
    """The pixels of the hole that are 4 px from its edge: nearer to it, the network's known pixels come in."""
    return cv2.erode(hole, np.ones((9, 9), np.uint8)) > 0


@pytest.fixture
def cheek() -> np.ndarray:
    """A hole of 20 px on the cheek."""
    hole = np.zeros((512, 512), np.float32)
    hole[118:138, 194:214] = 1
    return hole


def test_a_copying_network_shows_that_the_hole_was_white_and_nothing_else(
    copier: gpen_face.FaceFiller, scene: np.ndarray, cheek: np.ndarray
) -> None:
    filled = copier.fill(scene, cheek)
    assert (filled.shape, filled.dtype) == (scene.shape, np.float32)
    np.testing.assert_allclose(filled[deep(cheek)], 1, atol=2e-3)
    assert filled[cheek > 0].min() > 0.8
    assert np.array_equal(filled[cheek == 0], scene[cheek == 0])


def test_the_hole_is_drawn_in_the_networks_colours(tmp_path: Path, scene: np.ndarray, cheek: np.ndarray) -> None:
    # white in, and of white 0.2 of red, 0.5 of green, 0.9 of blue out: RGB in this order, 0..1
    filled = engine(tmp_path, np.diag([0.2, 0.5, 0.9])).fill(scene, cheek)
    np.testing.assert_allclose(filled[deep(cheek)], np.tile([0.2, 0.5, 0.9], (144, 1)), atol=2e-3)


def test_what_lies_under_the_hole_changes_nothing(
    copier: gpen_face.FaceFiller, tmp_path: Path, scene: np.ndarray, cheek: np.ndarray
) -> None:
    other = scene.copy()
    other[cheek > 0] = np.random.default_rng(0).random((400, 3))
    dim = engine(tmp_path, 0.5 * COPY, (0.1, 0.2, 0.3))
    assert np.array_equal(dim.fill(scene, cheek), dim.fill(other, cheek))


def test_it_draws_where_the_face_is(tmp_path: Path, scene: np.ndarray) -> None:
    """A network that answers black for white and white for black: only the hole may show it."""
    hole = np.zeros((512, 512), np.float32)
    hole[90:104, 200:245] = 1
    hole[134:146, 215:235] = 1
    filled = engine(tmp_path, -COPY, (1, 1, 1)).fill(scene, hole)
    assert filled[deep(hole)].max() < 2e-3
    assert np.array_equal(filled[hole == 0], scene[hole == 0])


def test_the_error_that_the_network_makes_around_the_hole_is_taken_out_of_it(
    tmp_path: Path, scene: np.ndarray, cheek: np.ndarray
) -> None:
    """A network that answers flat gray: with its error taken away, the fill goes on where the known pixels stop."""
    inside = cheek > 0
    ring = (cv2.dilate(cheek, np.ones((3, 3), np.uint8)) > 0) & ~inside
    rim = inside & ~(cv2.erode(cheek, np.ones((3, 3), np.uint8)) > 0)
    plain, matched = (
        engine(tmp_path, np.zeros((3, 3)), (0.5, 0.5, 0.5), match=match).fill(scene, cheek) for match in (False, True)
    )
    np.testing.assert_allclose(plain[inside], 0.5, atol=1e-5)
    assert np.abs(plain[rim].mean(0) - scene[ring].mean(0)).max() > 0.1
    assert np.abs(matched[rim].mean(0) - scene[ring].mean(0)).max() < 0.03
    assert np.array_equal(matched[~inside], scene[~inside])


def test_each_hole_goes_to_its_own_face(copier: gpen_face.FaceFiller, scene: np.ndarray, cheek: np.ndarray) -> None:
    pair, holes = np.concatenate([scene, scene[:, ::-1]], axis=1), np.concatenate([cheek, cheek[:, ::-1]], axis=1)
    steps: list[tuple[int, int]] = []
    filled = copier.fill(pair, holes, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    np.testing.assert_allclose(filled[deep(holes)], 1, atol=2e-3)


def test_a_hole_that_lies_on_no_face_is_refused_in_one_line(
    copier: gpen_face.FaceFiller, scene: np.ndarray, cheek: np.ndarray
) -> None:
    beside = np.zeros_like(cheek)
    beside[460:470, 20:40] = 1
    for hole in (beside, np.maximum(beside, cheek)):
        with pytest.raises(PhotoRefused, match="some of the hole lies on no face") as caught:
            copier.fill(scene, hole)
        assert "\n" not in str(caught.value)
    with pytest.raises(PhotoRefused, match="lies on no face"):
        copier.fill(np.full((40, 30, 3), 0.5, np.float32), np.eye(40, 30, dtype=np.float32))


def test_the_inpaint_command_takes_it_and_keeps_known_pixels_bit_for_bit(
    tmp_path: Path, portrait: np.ndarray, cheek: np.ndarray
) -> None:
    engine(tmp_path)
    store = Store.default({"FACEFIX_WEIGHTS": str(tmp_path)})
    painter = Inpainter.load(Recipe(engine="face", faces=False, fill_grain=0.0), device="cpu", store=store)
    result = painter(portrait, cheek)
    made = result.photo.raster
    assert result.report.fill["engine"] == "face, GPEN of 128 px"
    assert set(result.report.weights) == {"gpen-inpainting-1024", "centerface"}
    assert made[deep(cheek)].min() >= 254
    far = np.ones_like(cheek, bool)
    far[118 - 4 : 138 + 4, 194 - 4 : 214 + 4] = False
    assert np.array_equal(made[far], portrait[far])
    again = Inpainter.load(Recipe(model="gpen-inpainting-1024", faces=False), device="cpu", store=store)
    assert again.kind.name == "face"
    photo = Photo(portrait, Meta(source=Path("bride.png")))
    with pytest.raises(PhotoRefused, match=r"^bride\.png: --engine face: some of the hole lies on no face"):
        painter(photo, np.eye(512, dtype=bool))
    with pytest.raises(WeightsInvalid, match="expected a network that fills holes, got a restorer"):
        Inpainter.load(Recipe(engine="face", model="facefix-lite-256"), device="cpu", store=store)
