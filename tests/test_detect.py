import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from facefix import detect, detectors
from facefix.errors import UsageError
from facefix.types import Face, Meta, Photo

EYES_OF_PORTRAIT = np.array([[203.0, 107.0], [243.0, 109.0]])
"""Where the eyes of the `portrait` are by eye, within a few pixels; its face is about 75 px wide."""

SHARED_FILES = {
    "retinaface_mobile0.25": "detection_mobilenet0.25_Final.pth",
    "yunet": "face_detection_yunet_2026may.onnx",
}

FACES_BY_EYE = {
    "no_face_cat.png": 0,
    "old_portrait_scratched_sepia.jpg": 1,
    "portrait_small_225.jpg": 1,
    "profile_face.jpeg": 1,
    "queen_band_bw.jpeg": 4,
    "solvay_conference_1927.png": 29,
    "three_men_bw_small.jpg": 3,
    "whole_family_faded.png": 3,
}
MORE_FACES_BY_EYE = {
    "crop_face_0143_512.png": 1,
    "crop_face_0763_512.png": 1,
    "gray_face_762000_1024.png": 1,
    "gray_face_einstein_512_icc.png": 1,
    "group_four_actors_rgba_icc.png": 4,
    "group_four_men_491.jpg": 4,
    "no_face_shore.jpg": 0,
    "portrait_bw_icc.jpg": 1,
    "crop_face_0500_512.png": 1,
    "crop_face_adele_512.png": 1,
    "crop_face_justin_512.png": 1,
    "face_medical_mask.jpg": 1,
    "face_sharp_1024_ffhq_00004.png": 1,
    "face_sharp_1024_ffhq_00005.png": 1,
    "gray_face_hepburn_512.png": 1,
    "group_four_women.jpg": 4,
    "portrait_colour_icc.jpg": 1,
    "selfie_exif_orientation_6.jpg": 1,
    "selfie_modern_2316.jpg": 1,
    "whole_two_children.jpg": 2,
}


@pytest.fixture(scope="module")
def centerface() -> detectors.Detector:
    return detectors.load("centerface")


@pytest.fixture(scope="module", params=["centerface", *SHARED_FILES])
def detector(request: pytest.FixtureRequest) -> detectors.Detector:
    name: str = request.param
    path = Path(__file__).parents[1].parent / "shared" / "weights" / SHARED_FILES.get(name, "")
    if name in SHARED_FILES and not path.is_file():
        pytest.skip("needs the shared test data")
    return detectors.load(name, path if name in SHARED_FILES else None)


def photo_of(array: np.ndarray) -> Photo:
    return Photo(np.ascontiguousarray(array), Meta(bits=16 if array.dtype == np.uint16 else 8))


def read(path: Path) -> Photo:
    with Image.open(path) as picture:
        return photo_of(np.asarray(ImageOps.exif_transpose(picture).convert("RGB")))


def eyes_off(face: Face, where: np.ndarray) -> float:
    """The larger distance of an eye from where it should be, in distances between the eyes."""
    return float(np.linalg.norm(face.points[:2] - where, axis=1).max() / np.linalg.norm(where[1] - where[0]))


# --- a free picture ----------------------------------------------------------------------------------------------


def test_the_one_face_is_found_with_its_points_in_order(detector: detectors.Detector, portrait: np.ndarray) -> None:
    (face,) = detect.detect(photo_of(portrait), detector)
    assert eyes_off(face, EYES_OF_PORTRAIT) < 0.25
    left_eye, right_eye, nose, left_mouth, right_mouth = face.points
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    x0, y0, x1, y1 = face.box_xyxy
    assert np.all((face.points > [x0, y0]) & (face.points < [x1, y1]))
    assert detector.threshold <= face.score <= 1


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_photo_that_lies_gives_points_in_the_order_of_the_upright_face(
    detector: detectors.Detector, portrait: np.ndarray, turns: int
) -> None:
    tall = portrait[:400, 100:380]
    (upright,) = detect.detect(photo_of(tall), detector)
    (face,) = detect.detect(photo_of(np.rot90(tall, turns)), detector)
    points, size = face.points, tall.shape[:2]
    for _ in range(turns):
        size = size[::-1]
    for _ in range(turns):
        points = np.stack([size[0] - 1 - points[:, 1], points[:, 0]], axis=1)
        size = size[::-1]
    eye_px = np.linalg.norm(upright.points[0] - upright.points[1])
    assert np.linalg.norm(points - upright.points, axis=1).max() < 0.12 * eye_px


def test_rotations_never_and_always(centerface: detectors.Detector, portrait: np.ndarray) -> None:
    lying = photo_of(np.rot90(portrait[:400, 100:380], 1))
    (face,) = detect.detect(lying, centerface, rotations="always")
    up = face.points[:2].mean(axis=0) - face.points[3:].mean(axis=0)
    assert up[0] < -2 * abs(up[1])
    for found in detect.detect(lying, centerface, rotations="never"):
        assert found.points[:2, 1].mean() < found.points[3:, 1].mean()
    with pytest.raises(UsageError, match="rotations"):
        detect.detect(lying, centerface, rotations="sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.4, 0.75, 1.5])
def test_points_scale_about_pixel_centres(centerface: detectors.Detector, portrait: np.ndarray, factor: float) -> None:
    shown = cv2.resize(
        portrait, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    )
    (small,) = detect.detect(photo_of(portrait), centerface)
    (face,) = detect.detect(photo_of(shown), centerface)
    scaled = (small.points + 0.5) * factor - 0.5
    assert np.linalg.norm(face.points - scaled, axis=1).max() < 0.1 * factor * 40


def test_a_mirrored_photo_gives_mirrored_points(detector: detectors.Detector, portrait: np.ndarray) -> None:
    (face,) = detect.detect(photo_of(portrait), detector)
    (mirrored,) = detect.detect(photo_of(portrait[:, ::-1]), detector)
    back = np.stack([511 - mirrored.points[:, 0], mirrored.points[:, 1]], axis=1)[[1, 0, 2, 4, 3]]
    assert np.linalg.norm(back - face.points, axis=1).max() < 0.12 * 40


def test_depth_and_grey_do_not_matter(centerface: detectors.Detector, portrait: np.ndarray) -> None:
    (face,) = detect.detect(photo_of(portrait), centerface)
    (deep,) = detect.detect(photo_of(portrait.astype(np.uint16) * 257), centerface)
    np.testing.assert_allclose(deep.points, face.points, atol=0.5)
    grey = np.repeat(portrait[:, :, :1], 3, axis=2)
    (grey_face,) = detect.detect(photo_of(grey), centerface)
    assert eyes_off(grey_face, EYES_OF_PORTRAIT) < 0.25


def test_faces_are_sorted_from_left_to_right_and_small_ones_left_out(
    centerface: detectors.Detector, portrait: np.ndarray
) -> None:
    face = portrait[20:220, 120:320]
    page = np.full((260, 640, 3), 200, np.uint8)
    page[30:230, 20:220] = face
    page[20:120, 300:400] = cv2.resize(face, (100, 100), interpolation=cv2.INTER_AREA)
    page[40:240, 420:620] = face
    found = detect.detect(photo_of(page), centerface)
    assert len(found) == 3
    assert [f.box_xyxy[0] for f in found] == sorted(f.box_xyxy[0] for f in found)
    assert len(detect.detect(photo_of(page), centerface, min_face_px=60)) == 2
    assert detect.detect(photo_of(page), centerface, threshold=0.999) == ()


def test_the_same_call_gives_the_same_faces(centerface: detectors.Detector, portrait: np.ndarray) -> None:
    first, second = (detect.detect(photo_of(portrait), centerface) for _ in range(2))
    assert np.array_equal(first[0].points, second[0].points)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (4, 5000), (5000, 4), (31, 33), (300, 200)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_without_a_face_give_nothing(
    centerface: detectors.Detector, shape: tuple[int, int], dtype: type
) -> None:
    assert detect.detect(photo_of(np.full((*shape, 3), 117, dtype)), centerface) == ()


def test_noise_is_no_face(detector: detectors.Detector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    assert detect.detect(photo_of(noise), detector) == ()


# --- the parts -----------------------------------------------------------------------------------------------------


def test_a_face_on_the_edge_of_tiles_is_found_once_and_whole(
    centerface: detectors.Detector, portrait: np.ndarray
) -> None:
    face = cv2.resize(portrait[20:220, 120:320], (80, 80), interpolation=cv2.INTER_AREA)
    page = np.full((400, 2400, 3), 128, np.uint8)
    middle = 1200
    for at in (middle - 40, middle + 80, middle - 160):
        page[100:180, at : at + 80] = face
    assert len(detect.detect(photo_of(page), centerface)) == 3


class Counting(detectors.CenterFace):
    """CenterFace, and how many pixels it was shown."""

    shown = 0

    def at(self, raster: detectors.Bytes, threshold: float | None = None) -> detectors.Found:
        self.shown += raster.shape[0] * raster.shape[1]
        return super().at(raster, threshold)


def test_small_faces_are_found_as_if_the_photo_were_shown_in_full(portrait: np.ndarray) -> None:
    page = cv2.resize(np.random.default_rng(5).integers(60, 200, (6, 8, 3), np.uint8), (1100, 800))
    sides = (45, 55, 70, 100, 220, 400)  # the face is about 0.4 of it wide
    x = 20
    for side in sides:
        page[100 : 100 + side, x : x + side] = cv2.resize(
            portrait[20:220, 120:320], (side, side), interpolation=cv2.INTER_AREA
        )
        x += side + 30
    fast, full = (Counting(detectors._centerface_file()) for _ in range(2))
    full.suspicion, full.suspect_px = 0.6, 16.0
    fast.shown = full.shown = 0
    found, expected = (detect.detect(photo_of(page), detector) for detector in (fast, full))
    assert len(found) == len(expected) == len(sides)
    for face, same in zip(found, expected, strict=True):
        eye_px = np.linalg.norm(same.points[0] - same.points[1])
        assert np.linalg.norm(face.points - same.points, axis=1).max() < 0.15 * eye_px
    assert fast.shown < 0.7 * full.shown


def test_looks_that_cannot_matter_are_left_out_and_nothing_else(
    centerface: detectors.Detector, portrait: np.ndarray
) -> None:
    photo = photo_of(portrait)
    levels = detect._levels(photo, centerface, 16.0, 200)
    first = detect._search(levels, centerface, 0.1, 0)
    for least in (0.55, 0.8, 0.97):
        sure = first[first.scores >= least * detect.CANDIDATE]
        always = detect._looked_at(sure, levels, centerface, 0.0)
        always = always[always.scores >= least]
        seen = detect._looked_at(sure, levels, centerface, least)
        seen = seen[seen.scores >= least]
        np.testing.assert_array_equal(seen.scores, always.scores)
        np.testing.assert_array_equal(seen.points, always.points)


def test_a_suspicion_that_leads_to_a_known_face_costs_a_small_look_alone(portrait: np.ndarray) -> None:
    detector = Counting(detectors._centerface_file())
    levels = detect._levels(photo_of(portrait), detector, 16.0, 200)
    sure = detect._search(levels, detector, 0.5, 0)
    assert len(sure) == 1
    beside = detectors.Found(sure.boxes + 0.15 * sure.sizes[0], sure.points, np.array([0.2]))
    both = detectors.join([beside, sure])
    shown = []
    for finds in (sure, both):
        detector.shown = 0
        seen = detect._looked_at(finds, levels, detector, 0.55)
        assert len(seen) == 1
        assert eyes_off(Face(seen.boxes[0], seen.points[0], 1.0), EYES_OF_PORTRAIT) < 0.25
        shown.append(detector.shown)
    assert shown == [2 * 128**2, 2 * 128**2 + 64**2]


@pytest.mark.parametrize("height", [1, 127, 600, 1280, 1281, 2433, 5000])
@pytest.mark.parametrize("width", [800, 2000])
def test_tiles_cover_the_picture_and_are_no_larger_than_needed(height: int, width: int) -> None:
    boxes = detect._tiles(height, width)
    covered = np.zeros((height, width), bool)
    for box in boxes:
        covered[box.slices] = True
        assert box.x1 - box.x0 <= detect.TILE_PX
        assert box.y1 - box.y0 <= detect.TILE_PX
    assert covered.all()
    down, across = len({box.y0 for box in boxes}), len({box.x0 for box in boxes})
    area = (height + (down - 1) * (detect.OVERLAP_PX + 32)) * (width + (across - 1) * (detect.OVERLAP_PX + 32))
    assert sum((box.y1 - box.y0) * (box.x1 - box.x0) for box in boxes) <= area + 32 * (height + width) * len(boxes)


def test_turning_back_is_the_inverse_of_rot90() -> None:
    height, width, random = 7, 11, np.random.default_rng(3)
    picture = np.zeros((height, width))
    for turns in range(4):
        x, y = int(random.integers(width)), int(random.integers(height))
        picture[:] = 0
        picture[y, x] = 1
        turned = np.rot90(picture, turns)
        row, column = (int(i[0]) for i in np.nonzero(turned))
        point = np.full((1, 5, 2), [column, row], float)
        box = np.array([[column - 1.0, row - 2, column + 1, row + 2]])
        back = detect._turned_back(detectors.Found(box, point, np.ones(1)), turns, *turned.shape)
        np.testing.assert_allclose(back.points[0], np.full((5, 2), [x, y]))
        wide, tall = (1, 2) if turns % 2 == 0 else (2, 1)
        np.testing.assert_allclose(back.boxes[0], [x - wide, y - tall, x + wide, y + tall])


# --- large scans -----------------------------------------------------------------------------------------------------


LARGE_SCAN = """
    import resource, sys
    import numpy as np
    from facefix import detect, detectors
    from facefix.types import Meta, Photo
    from skimage.data import astronaut

    detector = detectors.load("centerface")
    detect.detect(Photo(astronaut()), detector)
    dtype = np.dtype(sys.argv[1])
    raster = np.full((10000, 10000, 3), 90, dtype)
    face = astronaut()
    for y, x in ((300, 500), (8900, 9200), (5000, 4700)):
        raster[y : y + 512, x : x + 512] = face if dtype == np.uint8 else face.astype(np.uint16) * 257
    large = face.repeat(6, axis=0).repeat(6, axis=1).astype(dtype)
    raster[2000:5072, 6000:9072] = large if dtype == np.uint8 else large * 257
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faces = detect.detect(Photo(raster, Meta(bits=8 * dtype.itemsize)), detector)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(len(faces), (after - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_100_megapixels_in_bounded_memory(dtype: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LARGE_SCAN), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    faces, extra_mb = map(int, done.stdout.split())
    assert faces == 4
    assert extra_mb < 700


# --- real photos -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACES_BY_EYE)
def test_as_many_faces_as_by_eye(detector: detectors.Detector, shared: Path, name: str) -> None:
    assert len(detect.detect(read(shared / "photos" / name), detector)) == FACES_BY_EYE[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_FACES_BY_EYE)
def test_as_many_faces_as_by_eye_in_the_other_photos(detector: detectors.Detector, shared: Path, name: str) -> None:
    assert len(detect.detect(read(shared / "photos" / name), detector)) == MORE_FACES_BY_EYE[name]
