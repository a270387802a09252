"""The detectors themselves: what they read, and what they make of one picture as it is shown."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facefix import detectors
from facefix.errors import UsageError, WeightsInvalid, WeightsMissing

SHARED_FILES = {
    "retinaface_mobile0.25": "detection_mobilenet0.25_Final.pth",
    "yunet": "face_detection_yunet_2026may.onnx",
}


@pytest.fixture(scope="module")
def centerface() -> detectors.CenterFace:
    return detectors.CenterFace(detectors._centerface_file())


def test_distinct_keeps_the_best_of_what_overlaps() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [22, 2, 27, 7], [40.0, 0, 50, 10]])
    found = detectors.Found(boxes, np.zeros((5, 5, 2)), np.array([0.8, 0.9, 0.7, 0.6, 0.5]))
    assert detectors.distinct(found, found.scores).tolist() == [1, 2, 4]
    assert detectors.distinct(detectors.NOTHING, np.zeros(0)).tolist() == []


def test_anchors_stand_in_the_middle_of_their_cells() -> None:
    slow = []
    for step, sides in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        for row in range(64 // step):
            for column in range(96 // step):
                slow += [((column + 0.5) * step, (row + 0.5) * step, side) for side in sides]
    np.testing.assert_array_equal(detectors._anchors(64, 96), slow)


def test_pictures_of_other_sizes_in_between_change_nothing(
    centerface: detectors.CenterFace, portrait: np.ndarray
) -> None:
    """OpenCV 4 computes wrong numbers with a network that has seen another size before."""
    first = centerface.at(portrait)
    for side in (64, 96, 128, 160, 192, 224):
        centerface.at(portrait[:side, :side])
    again = centerface.at(portrait)
    np.testing.assert_allclose(again.boxes, first.boxes, atol=1e-3)


@pytest.mark.parametrize("opencv", [4, 5])
def test_the_file_is_not_read_again_for_sizes_that_a_photo_needs(opencv: int, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = detectors.CenterFace(detectors._centerface_file())
    monkeypatch.setattr(detectors, "_OPENCV", opencv)
    shapes = [(1, 3, 32 * n, 32) for n in range(1, 9)]
    first = [detector._net(shape) for shape in shapes[:6]]
    assert all(detector._net(shape) is net for shape, net in zip(shapes, first, strict=False))
    assert len({id(net) for net in first}) == (6 if opencv == 4 else 1)
    detector._net(shapes[0])
    detector._net(shapes[6])
    assert detector._net(shapes[0]) is first[0], "the one that was not asked for longest goes"
    assert len(detector._nets) == (6 if opencv == 4 else 1)


# --- weight files ----------------------------------------------------------------------------------------------------


def test_unknown_names_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="centerface"):
        detectors.load("haar")
    for name in ("yunet", "retinaface_resnet50"):
        with pytest.raises(WeightsMissing, match="weights fetch"):
            detectors.load(name, tmp_path / "none")
        with pytest.raises(WeightsMissing):
            detectors.load(name)
    with pytest.raises(WeightsMissing):
        detectors.load("centerface", tmp_path / "none.onnx")


@pytest.mark.parametrize("name", detectors.NAMES)
def test_files_that_hold_something_else_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    for content in (b"", b"<!DOCTYPE html><html></html>", b"version https://git-lfs.github.com/spec/v1\n", bytes(5000)):
        path.write_bytes(content)
        with pytest.raises(WeightsInvalid) as caught:
            detectors.load(name, path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_another_onnx_file_is_refused(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WeightsInvalid, match="CenterFace"):
        detectors.load("centerface", shared / "weights" / SHARED_FILES["yunet"])
    with pytest.raises(WeightsInvalid, match="YuNet"):
        detectors.load("yunet", detectors._centerface_file())
    detectors.load("yunet", shared / "weights" / SHARED_FILES["yunet"])
    assert capfd.readouterr() == ("", "")


def test_nothing_in_a_hostile_pickle_runs(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "detection_Resnet50_Final.pth"
    path.write_bytes(pickle.dumps({"body": Hostile()}, protocol=2))
    with pytest.raises(WeightsInvalid):
        detectors.load("retinaface_resnet50", path)
    assert not (tmp_path / "ran").exists()


def test_the_weights_of_another_detector_are_refused(shared: Path) -> None:
    with pytest.raises(WeightsInvalid, match="retinaface_resnet50"):
        detectors.load("retinaface_resnet50", shared / "weights" / SHARED_FILES["retinaface_mobile0.25"])


def test_resnet50_loads_its_own_layout(tmp_path: Path, portrait: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from facexlib.detection.retinaface import RetinaFace

        made = RetinaFace("resnet50", device=torch.device("cpu"))
    path = tmp_path / "detection_Resnet50_Final.pth"
    torch.save({f"module.{name}": tensor for name, tensor in made.state_dict().items()}, path)
    loaded = detectors.load("retinaface_resnet50", path)
    found = loaded.at(portrait[:96, :64], 0.0)
    assert np.all(np.isfinite(found.points))


def test_retinaface_is_decoded_as_facexlib_does(shared: Path, portrait: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    from facexlib.detection.retinaface import RetinaFace

    path = shared / "weights" / SHARED_FILES["retinaface_mobile0.25"]
    theirs = RetinaFace("mobile0.25", device=torch.device("cpu"))
    theirs.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    with torch.no_grad():
        row = theirs.eval().detect_faces(np.ascontiguousarray(portrait[:, :, ::-1]), 0.8)[0]
    found = detectors.load("retinaface_mobile0.25", path).at(portrait)
    np.testing.assert_allclose(found.boxes[0] + 0.5, row[:4], atol=1e-2)
    np.testing.assert_allclose(found.points[0].ravel() + 0.5, row[5:], atol=1e-2)
    assert found.scores[0] == pytest.approx(row[4], abs=1e-5)
