import numpy as np

from facefix import FaceFix, Recipe, imagefile, sheet


def test_before_and_after_stand_side_by_side_with_the_faces_below(portrait: np.ndarray) -> None:
    photo = imagefile.from_array(portrait)
    result = FaceFix.load(Recipe(restorer="pattern"))(photo)
    picture = sheet.before_after(photo, result)
    gap, label = 16, 34
    before = picture.raster[gap + label : gap + label + 512, gap : gap + 512]
    after = picture.raster[gap + label : gap + label + 512, 2 * gap + 512 : 2 * gap + 1024]
    np.testing.assert_array_equal(before, portrait)
    np.testing.assert_array_equal(after, result.photo.raster)
    assert picture.width == 1024 + 3 * gap
    assert picture.height > 512 + 512


def test_large_sixteen_bit_and_enlarged_photos_make_a_sheet_of_bounded_size(portrait: np.ndarray) -> None:
    photo = imagefile.from_array(np.tile(portrait, (2, 4, 1)).astype(np.uint16) * 257)
    result = FaceFix.load(Recipe(restorer="identity", scale=2))(photo)
    picture = sheet.before_after(photo, result)
    assert picture.meta.bits == 8
    assert picture.width <= 2 * 1600 + 48


def test_a_photo_without_faces_makes_a_sheet_too() -> None:
    photo = imagefile.from_array(np.full((40, 30, 3), 128, np.uint8))
    picture = sheet.before_after(photo, FaceFix.load(Recipe(restorer="identity"))(photo))
    assert picture.width == 30 * 2 + 48


def test_faces_come_with_the_number_they_have_in_the_report(portrait: np.ndarray) -> None:
    result = FaceFix.load(Recipe(restorer="identity"))(portrait)
    [(number, (before, after))] = list(sheet.faces(result))
    assert number == 1
    np.testing.assert_array_equal(before.raster, after.raster)
    assert before.raster.shape == (512, 512, 3)
