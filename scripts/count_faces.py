"""Prints how many faces each detector finds in photos that were counted by eye.

    python scripts/count_faces.py PHOTOS [--weights DIR] [--rotations auto]

PHOTOS is a folder whose README.md holds a table with the columns "file" and "faces by eye".
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from facefix import detect, detectors
from facefix.types import Photo

FILES = {
    "retinaface_resnet50": ("detection_Resnet50_Final.pth",),
    "retinaface_mobile0.25": ("detection_mobilenet0.25_Final.pth",),
    "yunet": ("face_detection_yunet_2026may.onnx", "face_detection_yunet_2023mar.onnx"),
}


def counted_by_eye(readme: Path) -> dict[str, str]:
    """What the table says was counted, by file name; as text, for some crowds were not counted face by face."""
    rows = [[cell.strip() for cell in line.split("|")] for line in readme.read_text().splitlines() if "|" in line]
    header = next(row for row in rows if "faces by eye" in row)
    name, count = header.index("file"), header.index("faces by eye")
    return {row[name]: row[count] for row in rows if len(row) == len(header) and "." in row[name]}


def available(weights: Path | None) -> dict[str, detectors.Detector]:
    """CenterFace, and the others whose files lie in the folder."""
    found = {"centerface": detectors.load("centerface")}
    for name, files in FILES.items():
        path = next((weights / file for file in files if (weights / file).is_file()), None) if weights else None
        if path is not None:
            found[name] = detectors.load(name, path)
    return found


def main() -> None:
    """Print the table; a count that differs from the eye's carries an exclamation mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, help="folder with the files of RetinaFace and YuNet")
    parser.add_argument("--rotations", choices=("auto", "always", "never"), default="auto")
    options = parser.parse_args()
    by_name = available(options.weights)
    print("| photo | by eye |", " | ".join(by_name), "|")
    print("| --- " * (len(by_name) + 2) + "|")
    for file, eye in counted_by_eye(options.photos / "README.md").items():
        with Image.open(options.photos / file) as picture:
            upright = ImageOps.exif_transpose(picture)
        photo = Photo(np.asarray(upright.convert("RGB")))
        cells = []
        for detector in by_name.values():
            start = time.perf_counter()
            count = len(detect.detect(photo, detector, rotations=options.rotations))
            same = eye.split()[0] == str(count)
            cells.append(f"{count}{'' if same else '!'} ({time.perf_counter() - start:.2f} s)")
        print(f"| {file} | {eye} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
