from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facefix import FaceFix, Photo, Recipe, Result, imagefile
from facefix.errors import PhotoRefused, PhotoUnreadable, UsageError, WeightsInvalid, WeightsMissing
from facefix.types import Pixels


@pytest.fixture(scope="module")
def lite() -> FaceFix:
    return FaceFix.load(Recipe(restorer="facefix-lite-256"), device="cpu")


def changed(result: Result, array: np.ndarray) -> np.ndarray:
    return (result.photo.raster != array).any(axis=2)


def test_the_embedded_network_changes_the_face_and_nothing_else(lite: FaceFix, portrait: np.ndarray) -> None:
    result = lite(portrait)
    [note] = result.report.faces
    assert (note.outcome, note.reason, note.restorer, note.size) == ("restored", "", "facefix-lite-256", 256)
    assert note.seam is not None
    touched = changed(result, portrait)
    x0, y0, x1, y1 = note.face.box_xyxy
    height, width = y1 - y0, x1 - x0
    rows, columns = np.nonzero(touched)
    assert len(rows) > 0.3 * height * width
    assert y0 - height < rows.min() <= rows.max() < y1 + height
    assert x0 - width < columns.min() <= columns.max() < x1 + width
    assert list(result.patches) == [1]
    assert set(result.report.weights) == {"facefix-lite-256"}
    assert len(result.report.weights["facefix-lite-256"]) == 64


def test_the_same_photo_gives_the_same_bits(lite: FaceFix, portrait: np.ndarray) -> None:
    np.testing.assert_array_equal(lite(portrait).photo.raster, lite(portrait).photo.raster)


@pytest.mark.parametrize("bits", [8, 16])
def test_identity_gives_the_photo_back_bit_for_bit(portrait: np.ndarray, bits: int) -> None:
    array = portrait if bits == 8 else portrait.astype(np.uint16) * 257
    result = FaceFix.load(Recipe(restorer="identity"))(array)
    assert [note.outcome for note in result.report.faces] == ["restored"]
    assert not changed(result, array).any()


def test_strength_zero_and_half(portrait: np.ndarray) -> None:
    dim = portrait // 2 + 40
    full, half, none = (
        FaceFix.load(Recipe(restorer="pattern", strength=strength))(dim).photo.raster.astype(int) - dim
        for strength in (1.0, 0.5, 0.0)
    )
    assert not none.any()
    assert np.abs(full - 2 * half).max() <= 2
    assert np.abs(full).max() > 10


def test_every_kind_of_photo_is_taken(portrait: np.ndarray, portrait_file: Path) -> None:
    fix = FaceFix.load(Recipe(restorer="identity"))
    for given in (
        portrait,
        portrait_file,
        str(portrait_file),
        Image.fromarray(portrait),
        imagefile.from_array(portrait),
    ):
        assert len(fix(given).report.faces) == 1
    with pytest.raises(PhotoUnreadable):
        fix(np.zeros((4, 4, 3)))


@pytest.mark.parametrize("scale", [2, 4])
def test_scale_enlarges_the_photo_and_the_face_with_it(portrait: np.ndarray, scale: int) -> None:
    result = FaceFix.load(Recipe(restorer="identity", scale=scale))(portrait)
    assert result.photo.raster.shape == (512 * scale, 512 * scale, 3)
    assert (result.report.width, result.report.height) == (512 * scale, 512 * scale)
    back = result.photo.raster.reshape(512, scale, 512, scale, 3).mean(axis=(1, 3))
    assert np.abs(back - portrait).mean() < 1


def test_the_mask_decides_which_faces_and_which_pixels(lite: FaceFix, portrait: np.ndarray) -> None:
    [note] = lite(portrait).report.faces
    x0, _, x1, _ = note.face.box_xyxy
    left = np.zeros((512, 512), np.float32)
    left[:, : int((x0 + x1) / 2)] = 1
    result = lite(portrait, mask=left)
    assert [face.outcome for face in result.report.faces] == ["restored"]
    assert changed(result, portrait).any()
    assert not changed(result, portrait)[left == 0].any()
    corner = np.zeros((512, 512), np.float32)
    corner[-50:, -50:] = 1
    result = lite(portrait, mask=corner)
    assert [(f.outcome, f.reason) for f in result.report.faces] == [("skipped", "outside of the mask that was given")]
    assert not changed(result, portrait).any()


def test_a_mask_of_another_size_is_refused(lite: FaceFix, portrait: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(PhotoRefused, match="expected 512x512 px as the photo, got 20x10"):
        lite(portrait, mask=np.ones((10, 20), np.float32))
    Image.new("L", (20, 10)).save(tmp_path / "mask.png")
    with pytest.raises(PhotoRefused, match="mask does not fit"):
        lite(portrait, mask=tmp_path / "mask.png")


def test_what_is_doubtful_of_a_mask_is_told(lite: FaceFix, portrait: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(portrait).convert("L").save(tmp_path / "mask.jpg")
    whole = (tmp_path / "mask.jpg").read_bytes()
    (tmp_path / "mask.jpg").write_bytes(whole[: len(whole) // 2])
    result = lite(portrait, mask=tmp_path / "mask.jpg")
    [told] = result.report.warnings
    assert told.startswith("the mask: the file is cut short")
    assert lite.reblend(result, {1: 0.5}).report.warnings == (told,)
    assert lite(portrait, mask=np.ones((512, 512), np.float32)).report.warnings == ()


def test_faces_are_chosen_by_number_size_and_place(portrait: np.ndarray) -> None:
    small = np.asarray(Image.fromarray(portrait).resize((256, 256)))
    pair = np.zeros((512, 900, 3), np.uint8)
    pair[:, :512] = portrait
    pair[100:356, 600:856] = small

    def outcomes(face: str) -> list[str]:
        return [note.outcome for note in FaceFix.load(Recipe(restorer="identity", face=face))(pair).report.faces]

    assert outcomes("all") == ["restored", "restored"]
    assert outcomes("largest") == outcomes("1") == ["restored", "skipped"]
    assert outcomes("2") == ["skipped", "restored"]
    assert outcomes("1, 2") == ["restored", "restored"]
    for wrong in ("0", "left", "1,,2", ""):
        with pytest.raises(UsageError, match="--face: expected all, largest, center, or numbers"):
            FaceFix.load(Recipe(face=wrong))


def test_a_face_sharper_than_the_network_is_left_alone(portrait: np.ndarray, tiny_gpen_file: Path) -> None:
    recipe = Recipe(restorer=str(tiny_gpen_file))
    [note] = FaceFix.load(recipe)(portrait).report.faces
    assert note.outcome == "skipped"
    assert note.reason.startswith("already sharper than the 64 px")
    blurred = np.asarray(Image.fromarray(portrait).resize((96, 96)).resize((512, 512), Image.Resampling.BICUBIC))
    [note] = FaceFix.load(recipe)(blurred).report.faces
    assert (note.outcome, note.size) == ("restored", 64)
    [note] = FaceFix.load(Recipe(restorer=str(tiny_gpen_file), sharp_faces="restore"))(portrait).report.faces
    assert note.outcome == "restored"


def test_a_face_without_finite_pixels_is_reported_and_left_as_it_was(lite: FaceFix, portrait: np.ndarray) -> None:
    class Broken:
        name = "broken"
        template = lite.restorers.template

        def __call__(self, crops: list[object]) -> list[Pixels]:
            return [np.full((512, 512, 3), np.nan, np.float32) for _ in crops]

    fix = FaceFix.load(Recipe(restorer="identity"))
    fix.restorers._ready[512] = Broken()
    result = fix(portrait)
    [note] = result.report.faces
    assert (note.outcome, note.reason) == ("failed", "the network gave no finite numbers; try --precision float32")
    assert not changed(result, portrait).any()


def test_weights_that_are_missing_or_of_another_kind_are_refused(portrait_file: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"gpen-bfr-1024: GPEN-BFR-1024\.pth is not here"):
        FaceFix.load(Recipe(restorer="gpen-bfr-1024"))
    with pytest.raises(WeightsInvalid, match="expected a face restorer, got a detector"):
        FaceFix.load(Recipe(restorer="centerface"))
    with pytest.raises(WeightsInvalid):
        FaceFix.load(Recipe(restorer=str(portrait_file)))


def test_saving_an_unchanged_photo_copies_its_bytes(portrait_file: Path, tmp_path: Path) -> None:
    fix = FaceFix.load(Recipe(restorer="identity"))
    photo = imagefile.read(portrait_file)
    fix.save(fix(photo), photo, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == portrait_file.read_bytes()
    fix.save(fix(photo), photo, tmp_path / "out.bmp")
    assert isinstance(imagefile.read(tmp_path / "out.bmp"), Photo)


def test_saving_a_changed_photo_labels_it_unless_told_not_to(
    lite: FaceFix, portrait_file: Path, tmp_path: Path
) -> None:
    photo = imagefile.read(portrait_file)
    result = lite(photo)
    lite.save(result, photo, tmp_path / "labelled.png")
    assert b"compositeWithTrainedAlgorithmicMedia" in (tmp_path / "labelled.png").read_bytes()
    plain = FaceFix.load(Recipe(restorer="facefix-lite-256", ai_label=False))
    plain.save(result, photo, tmp_path / "plain.png")
    assert b"compositeWithTrainedAlgorithmicMedia" not in (tmp_path / "plain.png").read_bytes()
