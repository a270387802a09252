from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mixing_gpen import COPY, mixing, of_pixels, saved
from PIL import Image

from facefix import Photo, Recipe, imagefile, networks, trades
from facefix.errors import DeviceError, PhotoRefused, WeightsInvalid, WeightsMissing
from facefix.imagefile.xmp import source_type
from facefix.trades import CLASSES, PALETTE, Colorizer, FaceDrawer, labels_of
from facefix.types import Pixels
from facefix.weights import Store

WARM = np.diag([1.0, 0.75, 0.55])


def store(folder: Path) -> Store:
    return Store.default({"FACEFIX_WEIGHTS": str(folder), "FACEFIX_ACCEPT": "gpen-colorization-1024"})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with each trade's weights under their published names."""
    folder = tmp_path_factory.mktemp("weights")
    saved(of_pixels(WARM), folder / "GPEN-Colorization-1024.pth")
    saved(mixing(), folder / "GPEN-Seg2face-512.pth")
    return store(folder)


@pytest.fixture
def gray(portrait: np.ndarray) -> np.ndarray:
    return np.repeat(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)


def lab(raster: np.ndarray) -> np.ndarray:
    most = np.float32(np.iinfo(raster.dtype).max)
    return np.asarray(cv2.cvtColor(raster.astype(np.float32) / most, cv2.COLOR_RGB2Lab))


def face_of(raster: np.ndarray) -> np.ndarray:
    return raster[80:150, 195:255]


# --- colour ----------------------------------------------------------------------------------------------------------


def test_faces_get_the_networks_chroma_at_the_photos_own_lightness(shop: Store, gray: np.ndarray) -> None:
    result = Colorizer.load(device="cpu", store=shop)(gray)
    [note] = result.report.faces
    assert (note.outcome, note.restorer) == ("restored", "gpen-colorization-1024")
    assert set(result.report.weights) == {"gpen-colorization-1024"}
    made = result.photo.raster
    assert np.abs(lab(made) - lab(gray))[..., 0].max() < 0.7
    light = gray.astype(np.float32) / 255
    goal = cv2.cvtColor(light @ WARM.astype(np.float32), cv2.COLOR_RGB2Lab)
    # the tiny network's colour is as coarse as its 64 px, so means are compared
    found, wanted = (cv2.blur(face_of(each)[..., 1:], (31, 31))[20:50, 20:40] for each in (lab(made), goal))
    np.testing.assert_allclose(found, wanted, atol=4)
    assert np.hypot(found[..., 0], found[..., 1]).min() > 15


def test_a_whole_portrait_is_coloured_where_that_is_asked_for(shop: Store, gray: np.ndarray) -> None:
    face, portrait = (
        Colorizer.load(Recipe(mask_from=what), device="cpu", store=shop)(gray).photo.raster
        for what in ("landmarks", "crop")
    )
    coloured = [np.ptp(raster.astype(int), axis=2) > 4 for raster in (face, portrait)]
    assert coloured[1].sum() > 2 * coloured[0].sum() > 2000
    assert coloured[1][coloured[0]].mean() > 0.99
    assert np.array_equal(portrait[320:], gray[320:])


def test_what_is_around_the_faces_keeps_its_gray_bit_for_bit(shop: Store, gray: np.ndarray) -> None:
    made = Colorizer.load(device="cpu", store=shop)(gray).photo.raster
    changed = (made != gray).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 2000 < len(rows) < 40000
    assert rows.max() < 260
    assert 120 < columns.min() < columns.max() < 330


@pytest.mark.parametrize("bits", [8, 16])
def test_chroma_0_leaves_every_bit_and_one_half_gives_half_the_colour(shop: Store, gray: np.ndarray, bits: int) -> None:
    array = gray if bits == 8 else gray.astype(np.uint16) * 257
    none, half, whole = (
        Colorizer.load(Recipe(chroma=chroma), device="cpu", store=shop)(array).photo.raster
        for chroma in (0.0, 0.5, 1.0)
    )
    assert np.array_equal(none, array)
    chroma = [np.hypot(*face_of(lab(raster))[..., 1:].transpose(2, 0, 1)).mean() for raster in (half, whole)]
    assert chroma[0] / chroma[1] == pytest.approx(0.5, abs=0.03)


def test_a_network_that_copies_its_input_leaves_a_gray_photo_alone_and_takes_the_colours_of_another(
    tmp_path: Path, portrait: np.ndarray, gray: np.ndarray
) -> None:
    path = saved(of_pixels(), tmp_path / "copies.pth")
    colorizer = Colorizer.load(model=str(path), device="cpu", store=store(tmp_path))
    assert colorizer.brushes.brush().template.name == "ffhq"
    assert np.abs(colorizer(gray).photo.raster.astype(int) - gray).max() <= 1
    result = colorizer(portrait)
    # it was shown the face in gray, so gray is what it says of it
    assert np.abs(face_of(lab(result.photo.raster))[20:50, 15:45, 1:]).mean() < 1.5
    assert np.abs(face_of(lab(portrait))[..., 1:]).mean() > 10
    assert result.report.warnings == ("this photo has colours of its own; the network's take their place",)
    assert colorizer(portrait[300:]).report.warnings == ()  # no face: nothing takes the place of anything
    assert colorizer(gray).report.warnings == ()


def test_a_sepia_print_gets_the_networks_chroma_instead_of_its_own(shop: Store, gray: np.ndarray) -> None:
    sepia = np.clip(gray * np.array([1.0, 0.9, 0.72]), 0, 255).astype(np.uint8)
    result = Colorizer.load(device="cpu", store=shop)(sepia)
    made = lab(result.photo.raster)
    assert result.report.warnings == ()
    assert np.abs(made - lab(sepia))[..., 0].max() < 0.7
    assert np.hypot(*face_of(made - lab(sepia))[20:50, 15:45, 1:].transpose(2, 0, 1)).mean() > 5


def test_chroma_that_cannot_be_shown_is_drawn_in_instead_of_clipped(
    shop: Store, gray: np.ndarray, tmp_path: Path
) -> None:
    saved(of_pixels(np.zeros((3, 3)), (0, 0, 1)), tmp_path / "GPEN-Colorization-1024.pth")
    made = Colorizer.load(device="cpu", store=store(tmp_path))(gray).photo.raster
    assert np.hypot(*face_of(lab(made))[..., 1:].transpose(2, 0, 1)).mean() > 20
    assert np.abs(lab(made) - lab(gray))[..., 0].max() < 1.5


def test_an_aligned_face_is_coloured_to_its_edges(shop: Store, gray: np.ndarray) -> None:
    colorizer = Colorizer.load(device="cpu", store=shop)
    face = np.ascontiguousarray(gray[40:240, 130:330])
    made = colorizer(face, aligned=True).photo.raster
    assert np.abs(lab(made) - lab(face))[..., 0].max() < 0.7
    chroma = np.hypot(lab(made)[..., 1], lab(made)[..., 2])
    for edge in (chroma[0], chroma[-1], chroma[:, 0], chroma[:, -1]):
        assert edge.mean() > 5
    assert colorizer(np.full((1, 1), 128, np.uint8), aligned=True).photo.raster.shape == (1, 1, 3)
    with pytest.raises(PhotoRefused, match="expected an aligned face, which is square, got 200x100 px"):
        colorizer(np.ascontiguousarray(face[:100]), aligned=True)


def test_a_gray_file_becomes_one_that_can_hold_colours(shop: Store, gray: np.ndarray, tmp_path: Path) -> None:
    colorizer = Colorizer.load(device="cpu", store=shop)
    for name in ("scan.jpg", "scan.png", "scan.tif"):
        source, target = tmp_path / name, tmp_path / f"made-{name}"
        Image.fromarray(gray[..., 0]).save(source)
        photo = imagefile.read(source)
        assert photo.meta.gray
        colorizer.save(colorizer(photo), photo, target)
        made = imagefile.read(target)
        assert not made.meta.gray
        assert np.abs(face_of(lab(made.raster))[..., 2]).mean() > 10
        assert np.abs(made.raster[300:].astype(int) - photo.raster[300:]).max() <= (12 if name == "scan.jpg" else 0)
        packet = made.meta.xmp
        assert packet is not None
        assert str(source_type(packet)).endswith("compositeWithTrainedAlgorithmicMedia")


def test_a_photo_without_faces_is_copied(shop: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "wall.png", tmp_path / "out.png"
    Image.fromarray(np.full((80, 90), 120, np.uint8)).save(source)
    colorizer = Colorizer.load(device="cpu", store=shop)
    photo = imagefile.read(source)
    colorizer.save(colorizer(photo), photo, target)
    assert target.read_bytes() == source.read_bytes()


def test_what_is_doubtful_of_a_mask_is_told(shop: Store, tmp_path: Path) -> None:
    frames = [Image.new("L", (64, 64), level) for level in (255, 0)]
    frames[0].save(tmp_path / "mask.gif", save_all=True, append_images=frames[1:])
    result = Colorizer.load(device="cpu", store=shop)(np.full((64, 64), 120, np.uint8), mask=tmp_path / "mask.gif")
    assert result.report.warnings == ("the mask: only the first of the file's pictures is kept",)


def test_a_gray_profile_gives_way_to_srgb_and_looks_the_same(gray: np.ndarray) -> None:
    from facefix.imagefile.colour import space
    from facefix.imagefile.profile import profile_of_gamma

    icc = profile_of_gamma(1 / 1.8, None, gray=True)
    colours, problem = space(icc, bits=8, gray=True)
    assert problem is None
    photo = Photo(gray, imagefile.Meta(gray=True, icc=icc), colour=colours)
    made = imagefile.in_colour(photo)
    assert (made.meta.gray, made.meta.icc) == (False, None)
    assert not np.array_equal(made.raster, gray)
    np.testing.assert_allclose(made.pixels(), photo.pixels(), atol=0.5 / 255 + 1e-6)
    assert imagefile.in_colour(made) is made


def test_what_is_no_picture_is_said(shop: Store, gray: np.ndarray) -> None:
    class Overflow(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures * torch.nan

    drawer, colorizer = FaceDrawer.load(device="cpu", store=shop), Colorizer.load(device="cpu", store=shop)
    drawer.network.body = colorizer.brushes.brush().network.network.body = Overflow()
    with pytest.raises(DeviceError, match="no finite numbers; try --precision float32"):
        drawer(np.zeros((8, 8), np.uint8))
    with pytest.raises(DeviceError, match="no finite numbers"):
        colorizer(gray, aligned=True)
    result = colorizer(gray)
    assert result.report.faces[0].outcome == "failed"
    assert np.array_equal(result.photo.raster, gray)


def test_weights_of_another_trade_are_refused(shop: Store, tmp_path: Path) -> None:
    with pytest.raises(WeightsInvalid, match="expected a network that colours faces, got a restorer"):
        Colorizer.load(model="facefix-lite-256", device="cpu", store=shop)
    with pytest.raises(WeightsMissing, match="gpen-colorization-1024: "):
        Colorizer.load(device="cpu", store=store(tmp_path))
    with pytest.raises(WeightsMissing, match="identity"):
        Colorizer.load(model="identity", device="cpu", store=shop)
    with pytest.raises(WeightsInvalid, match="draws faces from label maps, got a colorizer"):
        FaceDrawer.load("gpen-colorization-1024", store=shop)


# --- label maps ------------------------------------------------------------------------------------------------------


@pytest.fixture
def labels() -> np.ndarray:
    """(48, 48) with every class, in fields of 8 px."""
    numbers = (np.arange(36) % len(CLASSES)).astype(np.uint8).reshape(6, 6)
    return numbers.repeat(8, 0).repeat(8, 1)


def test_the_network_is_shown_the_colours_as_0_to_1_and_its_answer_is_taken_so(shop: Store, labels: np.ndarray) -> None:
    drawer = FaceDrawer.load(device="cpu", precision="float32", store=shop)
    face = drawer(labels)
    assert face.shape == (64, 64, 3)
    at = np.minimum(((np.arange(64) + 0.5) * 48 / 64).astype(int), 47)
    np.testing.assert_allclose(face, PALETTE[labels[np.ix_(at, at)]] / 255, atol=1e-5)
    [(weight, path)] = shop.available("seg2face")
    assert (weight.mean, weight.std) == (0.0, 1.0)
    assert drawer.digests == {"gpen-seg2face-512": shop.digest(path)}


def test_it_is_not_brought_to_minus_1_to_1(tmp_path: Path, labels: np.ndarray) -> None:
    path = saved(mixing(0.5 * COPY, (0.25, 0.25, 0.25)), tmp_path / "own.pth")
    face = FaceDrawer.load(str(path), device="cpu", precision="float32", store=store(tmp_path))(labels)
    assert face[0, 0].tolist() == pytest.approx([0.25, 0.25, 0.25], abs=1e-5)  # -1..1 would make 0.375 of it
    assert networks.load(path).architecture == "GPEN"


def test_label_maps_come_as_numbers_or_in_the_published_colours(labels: np.ndarray) -> None:
    as_numbers = imagefile.from_array(labels)
    deep = imagefile.from_array(labels.astype(np.uint16))
    coloured = Photo(PALETTE[labels])
    deep_colours = imagefile.from_array(PALETTE[labels].astype(np.uint16) * 257)
    for picture in (as_numbers, deep, coloured, deep_colours):
        assert np.array_equal(labels_of(picture), labels)
        assert labels_of(picture).dtype == np.uint8
    other = PALETTE[labels].copy()
    other[labels == 7] = (255, 204, 204)
    assert np.array_equal(labels_of(Photo(other)), labels)


def test_published_label_maps_have_these_colours_where_these_parts_are() -> None:
    # pixels of the published example 28000: its hair, skin, nose, both brows and eyes, an ear, mouth and cloth
    seen = [(0, 0, 204), (204, 0, 0), (76, 153, 0), (51, 255, 255), (0, 255, 255), (204, 0, 204), (51, 51, 255)]
    names = ["hair", "skin", "nose", "right brow", "left brow", "right eye", "left eye"]
    for colour, name in zip(seen, names, strict=True):
        assert PALETTE[CLASSES.index(name)].tolist() == list(colour)
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == len(CLASSES) == 19


def test_what_is_no_label_map_is_refused_in_one_line(labels: np.ndarray, portrait: np.ndarray) -> None:
    with pytest.raises(PhotoRefused, match=r"got \d+ others such as \(\d+, \d+, \d+\) in \d+% of it") as caught:
        labels_of(Photo(portrait))
    assert "\n" not in str(caught.value)
    with pytest.raises(PhotoRefused, match="square label map"):
        labels_of(Photo(PALETTE[labels[:40]]))


def test_a_drawn_face_is_marked_as_made_from_edge_to_edge(shop: Store, labels: np.ndarray, tmp_path: Path) -> None:
    drawer = FaceDrawer.load(device="cpu", store=shop)
    drawer.save(drawer(labels), tmp_path / "face.png")
    packet = imagefile.read(tmp_path / "face.png").meta.xmp
    assert packet is not None
    assert str(source_type(packet)).endswith("/trainedAlgorithmicMedia")


# --- selfies ---------------------------------------------------------------------------------------------------------


def test_a_selfie_takes_the_largest_network_that_is_there(tmp_path: Path) -> None:
    bare = trades.selfie(store(tmp_path))
    assert (bare.restorer, bare.upscaler) == ("gpen-bfr-2048", "lanczos")
    assert (bare.strength, bare.scale, bare.face, bare.sharp_faces) == (0.8, 2, "largest", "restore")
    (tmp_path / "GPEN-BFR-1024.pth").write_bytes(b"there")
    assert trades.selfie(store(tmp_path)).restorer == "gpen-bfr-1024"
    (tmp_path / "GPEN-BFR-2048.pth").write_bytes(b"there")
    (tmp_path / "RealESRGAN_x2plus.pth").write_bytes(b"there")
    best = trades.selfie(store(tmp_path))
    assert (best.restorer, best.upscaler) == ("gpen-bfr-2048", "realesrgan-x2plus")


def test_a_selfie_is_restored_by_eight_tenths_at_twice_the_size(tmp_path: Path, portrait: np.ndarray) -> None:
    from facefix import FaceFix

    saved(of_pixels(np.zeros((3, 3)), (0.5, 0.5, 0.5)), tmp_path / "GPEN-BFR-2048.pth")
    recipe = Recipe(**{**trades.selfie(store(tmp_path)).values(), "colour": "free"})
    result = FaceFix.load(recipe, device="cpu", store=store(tmp_path))(portrait)
    [note] = result.report.faces
    assert (note.outcome, note.restorer) == ("restored", "gpen-bfr-2048")
    assert result.photo.raster.shape == (1024, 1024, 3)
    patch = result.patches[1]
    assert isinstance(patch.pixels, np.ndarray)
    wanted: Pixels = 0.2 * portrait[112, 225] + 0.8 * 127.5
    np.testing.assert_allclose(result.photo.raster[222:228, 448:454].mean((0, 1)), wanted, atol=8)


def test_made_weights_give_the_right_shapes_in_every_precision_here(shop: Store, labels: np.ndarray) -> None:
    for precision in ("float32", "bfloat16"):
        face = FaceDrawer.load(device="cpu", precision=precision, store=shop)(labels)
        assert face.dtype == np.float32
        assert torch.isfinite(torch.from_numpy(face)).all()


# --- beside the published program ------------------------------------------------------------------------------------


def test_answers_are_those_of_the_published_program(tiny_gpen_file: Path, tmp_path: Path) -> None:
    """Recorded from GPEN's FaceGAN.process (commit 2c73670) with this file's weights, every fourth pixel."""
    recorded = np.load(Path(__file__).parent / "data" / "trades" / "published.npz")
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    labels = ((x // 8 + 3 * (y // 8)) % 19).astype(np.uint8)
    drawer = FaceDrawer.load(str(tiny_gpen_file), device="cpu", precision="float32", store=store(tmp_path))
    gray = np.repeat(((5 * x + 3 * y * y) % 256)[:, :, None], 3, axis=2) / np.float32(255)
    colorizer = Colorizer.load(
        Recipe(precision="float32"), model=str(tiny_gpen_file), device="cpu", store=store(tmp_path)
    )
    [coloured] = colorizer.brushes.brush().painted([gray.astype(np.float32)])
    for made, name in ((drawer(labels), "seg2face"), (coloured, "colorization")):
        found = np.floor(made[2::4, 2::4] * 255)  # it cuts fractions off
        assert np.abs(found - recorded[name]).max() <= 1
        assert recorded[name].std() > 20
