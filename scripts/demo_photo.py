"""Writes an aged photo to try facefix on: the astronaut of scikit-image, with a seeded degradation.

The portrait of Eileen Collins is NASA's and in the public domain; scikit-image carries it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from degrade import LEVELS, degrade
from skimage.data import astronaut

from facefix import imagefile
from facefix.errors import FacefixError

SEED = 0


def aged_astronaut() -> np.ndarray:
    """The (512, 512, 3) uint8 portrait, faded, grainy, soft and blocky as from an old album; the same every time."""
    clean = astronaut().astype(np.float32) / np.float32(255)
    damaged, _ = degrade(clean, LEVELS["medium"], np.random.default_rng(SEED), "faded")
    return np.rint(damaged * 255).astype(np.uint8)


def main() -> None:
    """Write the picture to the path that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="where to write it, for example aged.png")
    target = parser.parse_args().out
    try:
        imagefile.write(imagefile.from_array(aged_astronaut()), target, overwrite=True)
    except FacefixError as error:
        raise SystemExit(f"demo_photo: {error}") from error


if __name__ == "__main__":
    main()
