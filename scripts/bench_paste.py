"""Times everything but the networks for one photo, stage by stage, beside facexlib's align and paste.

    python scripts/bench_paste.py PHOTO [--scale 1 4] [--repeats 5] [--detector NAME --weights FILE]

Both get the same faces and give every crop back a little brighter, in place of a network. A second pass gives the crops
back unchanged and compares the photo with what came back, where the pastes reach.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import align, blend, detect, detectors, imagefile, mask, upscale
from facefix.types import Crop, Face, Patch, Photo
from facefix.weights import Store

Stages = dict[str, float]
_SIZE = 512
_GAIN = np.float32(1.05)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; returns the exit status."""
    asked = _arguments(argv)
    photo = imagefile.read(asked.photo)
    path = asked.weights if asked.weights is not None else Store.default().require(asked.detector)[1]
    faces = detect.detect(photo, detectors.load(asked.detector, path, device="cpu"))
    print(f"{asked.photo.name}: {photo.width}x{photo.height}, {photo.meta.bits} bit, {len(faces)} faces")
    if not faces:
        return 1
    for scale in asked.scale:
        ours, theirs = _interleaved(asked.repeats, asked.photo, photo, faces, scale)
        _print_times(scale, ours, theirs)
        _print_round_trip(photo, faces, scale)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--scale", type=int, nargs="+", default=[1, 4], choices=(1, 2, 4))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--detector", default="centerface")
    parser.add_argument("--weights", type=Path, help="the detector's file; the store's without it")
    return parser.parse_args(argv)


def _interleaved(
    repeats: int, path: Path, photo: Photo, faces: Sequence[Face], scale: int
) -> tuple[list[Stages], list[Stages]]:
    """The stages' seconds of every repeat, ours and facexlib's by turns; the first, unmeasured, warms both up."""
    ours: list[Stages] = []
    theirs: list[Stages] = []
    for _ in range(repeats + 1):
        ours.append(_ours(path, faces, scale))
        theirs.append(_facexlib(_bgr(photo), faces, scale, _GAIN)[1])
    return ours[1:], theirs[1:]


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.stages: Stages = {}

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns; its time is noted under the name."""
        started = time.perf_counter()
        result = compute()
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - started
        return result


def _ours(path: Path, faces: Sequence[Face], scale: int) -> Stages:
    """Seconds of reading, aligning, masking, enlarging, pasting and writing."""
    clock = _Clock()
    photo: Photo = clock("read", lambda: imagefile.read(path))
    crops: list[Crop] = clock("align", lambda: _crops(photo, faces))
    shapes = clock("mask", lambda: [_shape(crop) for crop in crops])
    patches = [_patch(crop, shape, _GAIN) for crop, shape in zip(crops, shapes, strict=True)]
    canvas = clock("enlarge", lambda: upscale.lanczos(photo, scale))
    result = clock("paste", lambda: blend.paste(canvas, patches, scale))
    with tempfile.TemporaryDirectory() as folder:
        clock("write", lambda: imagefile.write(result, Path(folder) / f"result{path.suffix}"))
    return clock.stages


def _crops(photo: Photo, faces: Sequence[Face]) -> list[Crop]:
    target = align.template("ffhq", _SIZE)
    return [align.crop(photo, face, target) for face in faces]


def _shape(crop: Crop) -> NDArray[np.float32]:
    return mask.landmark_mask(align.moved(crop.crop_from_photo, crop.face.points), crop.template.size)


def _patch(crop: Crop, shape: NDArray[np.float32], gain: np.float32) -> Patch:
    return Patch(crop.pixels * gain, crop.pixels, shape, crop.crop_from_photo)


def _facexlib(
    bgr: NDArray[np.uint8], faces: Sequence[Face], scale: int, gain: np.float32
) -> tuple[NDArray[np.uint8], Stages]:
    """The picture that facexlib's FaceRestoreHelper makes, and the seconds of its align and paste."""
    from facexlib.utils.face_restoration_helper import FaceRestoreHelper  # type: ignore[import-untyped]

    clock = _Clock()
    # its constructor would download two networks that neither align nor this paste uses
    worker = object.__new__(FaceRestoreHelper)
    worker.upscale_factor, worker.face_size = scale, (_SIZE, _SIZE)
    worker.face_template = align.template("ffhq", _SIZE).points * 1.0
    worker.pad_blur = worker.use_parse = False
    worker.pad_input_imgs = []
    worker.clean_all()
    worker.read_image(bgr)
    worker.all_landmarks_5 = [np.array(face.points) for face in faces]
    clock("align", worker.align_warp_face)
    clock("align", worker.get_inverse_affine)
    for crop in worker.cropped_faces:
        worker.add_restored_face(np.clip(np.rint(crop * gain), 0, 255).astype(np.uint8) if gain != 1 else crop)
    result = clock("paste", worker.paste_faces_to_input_image)
    return result, clock.stages


def _bgr(photo: Photo) -> NDArray[np.uint8]:
    """The photo as facexlib takes it; 16 bits are cut to 8."""
    raster = photo.raster if photo.raster.dtype == np.uint8 else (photo.raster >> 8).astype(np.uint8)
    return np.ascontiguousarray(raster[:, :, ::-1])


def _print_times(scale: int, ours: Sequence[Stages], theirs: Sequence[Stages]) -> None:
    medians = [{name: statistics.median(run[name] for run in runs) for name in runs[0]} for runs in (ours, theirs)]
    print(f"scale {scale}, median of {len(ours)}, milliseconds")
    for title, stages in zip(("facefix", "facexlib"), medians, strict=True):
        print(f"  {title:9}" + "  ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in stages.items()))
    same = sum(medians[0][name] for name in ("align", "mask", "enlarge", "paste"))
    whole, facexlib = sum(medians[0].values()), sum(medians[1].values())
    print(
        f"  align to paste: facefix {same:.3f} s, facexlib {facexlib:.3f} s, {facexlib / same:.1f} times as fast; "
        f"with reading and writing {whole:.3f} s, {facexlib / whole:.1f} times"
    )


def _print_round_trip(photo: Photo, faces: Sequence[Face], scale: int) -> None:
    """Prints how far the photo is from itself after every crop was pasted back unchanged."""
    canvas = upscale.lanczos(photo, scale)
    crops = _crops(photo, faces)
    back = blend.paste(canvas, [_patch(crop, _shape(crop), np.float32(1)) for crop in crops], scale)
    eight = dataclasses.replace(
        photo, raster=_bgr(photo)[:, :, ::-1], alpha=None, meta=dataclasses.replace(photo.meta, bits=8)
    )
    height, width = photo.height * scale, photo.width * scale
    plain = cv2.resize(_bgr(eight), (width, height), interpolation=cv2.INTER_LANCZOS4)
    theirs, _ = _facexlib(_bgr(eight), faces, scale, np.float32(1))
    for title, before, after in (("facefix", canvas.raster, back.raster), ("facexlib", plain, theirs)):
        error = np.abs(after.astype(np.int32) - before.astype(np.int32)).astype(np.float64)
        error *= 255 / (2 ** (8 * before.dtype.itemsize) - 1)
        touched = error.max(2) > 0
        mean = float((error[touched] ** 2).mean()) if touched.any() else 0.0
        ratio = "exact" if mean == 0 else f"{10 * np.log10(255**2 / mean):.1f} dB where changed"
        print(f"  unchanged crops, {title:9} off by {error.max():.1f} grey levels at most, {ratio}")


if __name__ == "__main__":
    sys.exit(main())
