from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from facefix import align, networks, runtime
from facefix.errors import DeviceError, WeightsInvalid, WeightsMissing
from facefix.restore import Identity, NetworkRestorer, Pattern, Shelf, pattern, sharper_than
from facefix.types import Face, Photo
from facefix.weights import Store


@pytest.fixture
def face() -> Face:
    points = np.array([[204.1, 101.6], [246.1, 100.6], [225.2, 124.2], [207.4, 142.6], [242.1, 141.7]])
    return Face(np.array([180.0, 56, 270, 171]), points, 0.9)


def shelf(name: object, store: Store | None = None) -> Shelf:
    return Shelf(str(name), store or Store.default(), device="cpu", precision="float32")


def test_identity_returns_the_crops_own_pixels(portrait: np.ndarray, face: Face) -> None:
    crop = align.crop(Photo(portrait), face, align.template("gpen", 256))
    assert Identity(crop.template)([crop])[0] is crop.pixels


def test_pattern_stands_still_in_the_photo_whatever_the_template(portrait: np.ndarray, face: Face) -> None:
    photo = Photo(portrait)
    seen = []
    for target in (align.template("gpen", 256), align.template("gpen", 512)):
        crop = align.crop(photo, face, target)
        [new] = Pattern(target)([crop])
        at_eye = align.moved(crop.crop_from_photo, face.points)[0]
        x, y = np.rint(at_eye).astype(int)
        seen.append((new - crop.pixels)[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1)))
    np.testing.assert_allclose(seen[0], seen[1], atol=0.004)


def test_pattern_has_no_symmetry() -> None:
    x, y = np.meshgrid(np.arange(64.0), np.arange(64.0))
    field = pattern(x, y, 16.0)
    assert field.shape == (64, 64, 3)
    assert np.abs(field).max() <= 1
    for turned in (field[:, ::-1], field[::-1], field.transpose(1, 0, 2), field[..., ::-1]):
        assert np.abs(field - turned).max() > 0.5


def test_a_network_sees_its_own_size_in_minus_one_to_one(
    tiny_gpen_file: Path, portrait: np.ndarray, face: Face
) -> None:
    network = networks.load(tiny_gpen_file)
    template = align.template("gpen", 64)
    crops = [align.crop(Photo(picture), face, template) for picture in (portrait, portrait[:, ::-1].copy())]
    restored = NetworkRestorer(network, "tiny", template)(crops)
    for crop, new in zip(crops, restored, strict=True):
        batch = torch.from_numpy(crop.pixels.transpose(2, 0, 1).copy())[None] * 2 - 1
        wanted = ((network(batch)[0] + 1) / 2).clamp(0, 1).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(new, wanted, atol=1e-4)


def test_the_smallest_network_that_is_as_large_as_the_face_is_taken(tmp_path: Path) -> None:
    store = Store.default({"FACEFIX_WEIGHTS": str(tmp_path)})
    for name in ("GPEN-BFR-512.pth", "gpen-bfr-2048.pth"):
        (tmp_path / name).write_bytes(b"not looked into yet")
    found = shelf("auto", store)
    assert {weight.name for weight in found.weights} >= {"gpen-bfr-512", "gpen-bfr-2048"}
    assert "facefix-lite-256" not in {weight.name for weight in found.weights}
    assert [found.size_for(span) for span in (60, 512, 513, 1500, 9000)] == [512, 512, 2048, 2048, 2048]
    with pytest.raises(WeightsInvalid):
        found.take(512)


def test_without_other_weights_the_embedded_network_is_taken() -> None:
    found = shelf("facefix-lite-256")
    restorer = found.take(found.size_for(300))
    assert (restorer.name, restorer.template.name, restorer.template.size) == ("facefix-lite-256", "gpen", 256)
    assert found.take(256) is restorer
    assert set(found.digests) == {"facefix-lite-256"}


def test_the_embedded_network_cleans_large_faces_in_tiles_at_their_own_resolution(
    portrait: np.ndarray, face: Face
) -> None:
    found = shelf("facefix-lite-256")
    assert [found.size_for(span) for span in (60, 320, 321, 700, 9000)] == [256, 256, 320, 704, 1024]
    restorer = found.take(480)
    assert (restorer.name, restorer.template.size, found.take(480)) == ("facefix-lite-256", 480, restorer)
    assert found.size_for(408) == 416
    large = cv2.resize(portrait, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    near = Face(face.box_xyxy * 2 + 0.5, face.points * 2 + 0.5, face.score)
    noise = np.random.default_rng(5).normal(0, 15, (*large.shape[:2], 1))
    noisy = np.clip(large + noise, 0, 255).astype(np.uint8)
    clean, crop = (align.crop(Photo(picture), near, restorer.template) for picture in (large, noisy))
    [new] = restorer([crop])
    assert isinstance(restorer, NetworkRestorer)
    for corner in (slice(0, 256), slice(-256, None)):
        [alone] = runtime.run(restorer.network, [crop.pixels[corner, corner]])
        inner = slice(0, 224) if corner.start == 0 else slice(-224, None)
        np.testing.assert_allclose(new[inner, inner], alone[inner, inner], atol=1e-5)
    assert np.square(new - clean.pixels).mean() < 0.5 * np.square(crop.pixels - clean.pixels).mean()


def test_a_file_by_path_brings_its_size_from_its_tensors(tiny_gpen_file: Path) -> None:
    found = shelf(tiny_gpen_file)
    assert found.size_for(1000) == 64
    assert (found.take(64).name, found.take(64).template.name) == ("tiny", "gpen")


def test_refusals_are_in_the_words_of_the_store(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing):
        shelf("gpen-bfr-1024", Store.default({"FACEFIX_WEIGHTS": str(tmp_path)}))
    with pytest.raises(WeightsInvalid, match="expected a face restorer, got a detector"):
        shelf("centerface")
    with pytest.raises(DeviceError):
        Shelf("identity", Store.default(), device="cpu", precision="float16")


def test_sharp_is_what_the_output_could_not_hold(portrait: np.ndarray, face: Face) -> None:
    span = align.face_px(align.estimate(face.points, align.template("gpen", 512)), align.template("gpen", 512))
    soft = cv2.GaussianBlur(portrait, (0, 0), 4)
    rng = np.random.default_rng(0)
    noisy = np.clip(soft + rng.normal(0, 8, soft.shape), 0, 255).astype(np.uint8)
    assert sharper_than(Photo(portrait), face, span, 64)
    assert not sharper_than(Photo(soft), face, span, 64)
    assert not sharper_than(Photo(noisy), face, span, 64)
    assert not sharper_than(Photo(portrait), face, span, 256)
    outside = Face(np.array([600.0, 600, 700, 700]), face.points, 0.9)
    assert not sharper_than(Photo(portrait), outside, span, 64)
