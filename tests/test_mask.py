import numpy as np
import pytest

from facefix import align, mask
from facefix.errors import DegenerateLandmarks

FFHQ = align.TEMPLATES["ffhq"].points


def turned(points: np.ndarray, angle: float, about: float = 255.5) -> np.ndarray:
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points - about) @ rotation.T + about


def in_profile(points: np.ndarray, side: float) -> np.ndarray:
    """The face turned aside: the eyes and mouth corners come near, the nose runs out to the side."""
    near = points.copy()
    near[:, 0] = 256 + (points[:, 0] - 256) * 0.25
    near[2, 0] += side * 55
    return near


@pytest.mark.parametrize("name", ["gpen", "ffhq"])
@pytest.mark.parametrize("size", [64, 256, 512, 1024])
@pytest.mark.parametrize("angle", [0.0, 0.5, np.pi])
def test_a_mask_is_soft_and_ends_before_the_edge(name: str, size: int, angle: float) -> None:
    points = turned(align.template(name, size).points, angle, (size - 1) / 2)
    shape = mask.landmark_mask(points, size)
    assert shape.shape == (size, size)
    assert shape.dtype == np.float32
    assert shape.min() == 0
    assert shape.max() == pytest.approx(1)
    for edge in (shape[0], shape[-1], shape[:, 0], shape[:, -1]):
        assert not edge.any()
    steps = max(np.abs(np.diff(shape, axis=axis)).max() for axis in (0, 1))
    assert steps < 30 / size + 0.02


@pytest.mark.parametrize("name", ["gpen", "ffhq"])
def test_a_mask_covers_brows_cheeks_and_chin_but_not_the_corners(name: str) -> None:
    points = align.TEMPLATES[name].points
    shape = mask.landmark_mask(points, 512)
    eye_px = float(points[1, 0] - points[0, 0])
    middle, eyes = points[:2].mean(0), points[0, 1]
    for x, y in [*points, (middle[0], eyes - 0.4 * eye_px), (middle[0], eyes + 1.5 * eye_px)]:
        assert shape[round(y), round(x)] > 0.95
    for side in (-0.75, 0.75):
        assert shape[round(eyes + 0.4 * eye_px), round(middle[0] + side * eye_px)] > 0.9
        assert shape[round(eyes + 0.4 * eye_px), round(middle[0] + 1.7 * side * eye_px)] < 0.1
    assert shape[40, 40] == 0
    assert shape[-40, 40] == 0


def test_a_mask_turns_with_the_face() -> None:
    upright = mask.landmark_mask(align.TEMPLATES["gpen"].points, 512)
    quarter = mask.landmark_mask(turned(align.TEMPLATES["gpen"].points, np.pi / 2), 512)
    assert np.abs(np.rot90(upright, -1) - quarter).max() < 0.02


def test_a_mask_scales_with_the_crop() -> None:
    """The same face in a crop twice as large: the mask and its soft band twice as large."""
    small = mask.landmark_mask(align.template("ffhq", 256).points, 256)
    large = mask.landmark_mask(align.template("ffhq", 512).points, 512)
    assert np.abs(large.reshape(256, 2, 256, 2).mean((1, 3)) - small).max() < 0.02


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_profile_gets_its_nose_and_its_cheek(side: float) -> None:
    points = in_profile(FFHQ, side)
    shape = mask.landmark_mask(points, 512)
    nose = points[2]
    assert shape[round(nose[1]), round(nose[0])] > 0.4
    columns = np.flatnonzero((shape > 0.5).any(0))
    assert (columns.mean() - 256) * side < points[2, 0] * side - 256 * side
    assert columns[-1] - columns[0] < 300


def test_the_band_is_as_wide_as_asked() -> None:
    narrow, wide = (mask.landmark_mask(FFHQ, 512, feather) for feather in (0.05, 0.3))
    bands = [((shape > 0.02) & (shape < 0.98)).sum() for shape in (narrow, wide)]
    assert 3 < bands[1] / bands[0] < 9
    assert abs((narrow > 0.5).sum() / (wide > 0.5).sum() - 1) < 0.1


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), 100.0)])
def test_points_without_area_are_refused(points: np.ndarray) -> None:
    with pytest.raises(DegenerateLandmarks):
        mask.landmark_mask(points, 256)


def made_labels(size: int = 256) -> np.ndarray:
    labels = np.zeros((size, size), np.uint8)
    y, x = np.mgrid[:size, :size] / size
    labels[((x - 0.5) / 0.28) ** 2 + ((y - 0.55) / 0.35) ** 2 < 1] = 1
    labels[(abs(x - 0.4) < 0.05) & (abs(y - 0.45) < 0.03)] = 4
    labels[y < 0.3] = 13
    labels[5:9, 5:9] = 1
    return labels


def test_a_label_mask_follows_the_classes_and_fills_holes() -> None:
    shape = mask.label_mask(made_labels(), {1})
    assert shape[round(0.45 * 256), round(0.4 * 256)] > 0.95
    assert shape[20, 128] == 0
    assert shape[7, 7] == 0
    assert not shape[[0, -1]].any()
    assert np.abs(np.diff(shape, axis=0)).max() < 0.15


def test_a_label_mask_that_fills_the_crop_still_ends_before_its_edge() -> None:
    shape = mask.label_mask(np.full((128, 128), 1, np.uint8), {1}, 256)
    assert shape.shape == (256, 256)
    assert not shape[[0, -1]].any()
    assert not shape[:, [0, -1]].any()
    assert shape[128, 128] == 1


def test_a_label_mask_without_its_classes_is_empty() -> None:
    assert not mask.label_mask(made_labels(), {7}).any()


def test_touches_asks_pixels_not_boxes() -> None:
    shape = mask.landmark_mask(FFHQ, 512)
    mask_from_photo = np.array([[4.0, 0, -200], [0, 4.0, -120]])
    photo_from_mask = align.invert(mask_from_photo)
    user = np.zeros((300, 300), np.float32)
    assert not mask.touches(shape, mask_from_photo, user)
    nose = np.rint(align.moved(photo_from_mask, FFHQ[2:3])[0]).astype(int)
    user[nose[1], nose[0]] = 0.2
    assert mask.touches(shape, mask_from_photo, user)
    user[:] = 0
    corner = np.rint(align.moved(photo_from_mask, np.array([[30.0, 30.0]]))[0]).astype(int)
    user[corner[1], corner[0]] = 1
    assert not mask.touches(shape, mask_from_photo, user)


def test_touches_agrees_with_every_pixel_asked() -> None:
    rng = np.random.default_rng(2)
    shape = mask.landmark_mask(align.template("gpen", 64).points, 64)
    for _ in range(20):
        turn, scale = rng.uniform(-3, 3), rng.uniform(0.5, 3)
        linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        mask_from_photo = np.column_stack([linear, rng.uniform(-60, 90, 2)])
        user = (rng.random((50, 60)) > 0.995).astype(np.float32)
        slow = False
        for y, x in np.argwhere(user > 0):
            u, v = np.rint(mask_from_photo[:, :2] @ (x, y) + mask_from_photo[:, 2]).astype(int)
            slow |= bool(0 <= u < 64 and 0 <= v < 64 and shape[v, u] > 0)
        assert mask.touches(shape, mask_from_photo, user) == slow


@pytest.mark.parametrize("size", [64, 513])
def test_the_mask_of_a_whole_crop_is_1_in_the_middle_and_0_at_its_edge(size: int) -> None:
    found = mask.crop_mask(size, 0.2)
    assert found[size // 2 - 4 : size // 2 + 5, size // 2 - 4 : size // 2 + 5].min() == 1
    assert found[[0, -1]].max() == found[:, [0, -1]].max() == 0
    np.testing.assert_allclose(found, found[::-1], atol=1e-6)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    assert np.abs(np.diff(found, axis=0)).max() < 1.6 / (0.2 * size) + 0.1
    assert found.mean() > mask.landmark_mask(align.template("ffhq", size).points, size).mean()
