"""Clean training pictures for facefix-lite, made by this program and cut from freely licensed photos.

Three kinds, mixed by `clean_picture`:
    dead leaves    `lite_leaves`
    drawn faces    `lite_faces`
    free photos    sample data of scikit-image, scikit-learn and PyWavelets (`FREE_PHOTOS` names each with its rights);
                   what is not installed is left out
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from lite_faces import drawn_face
from lite_leaves import Textures, dead_leaves, muted_colours
from numpy.typing import NDArray

from facefix.types import Pixels

Rng = np.random.Generator


FREE_PHOTOS: dict[str, str] = {
    "skimage/data/brick.png": "CC0 (CC0Textures, Bricks25)",
    "skimage/data/grass.png": "CC0 (linolafett)",
    "skimage/data/gravel.png": "CC0 (CC0Textures, Gravel04)",
    "skimage/data/camera.png": "CC0 (Lav Varshney)",
    "skimage/data/coffee.png": "CC0 (Rachel Michetti)",
    "skimage/data/coins.png": "no known copyright restrictions (Brooklyn Museum)",
    "skimage/data/hubble_deep_field.jpg": "public domain (NASA)",
    "skimage/data/ihc.png": "no known copyright restrictions (CMMI)",
    "skimage/data/retina.jpg": "CC0 (Wikimedia Commons)",
    "skimage/data/rocket.jpg": "public domain (SpaceX)",
    "sklearn/datasets/images/china.jpg": "CC BY 2.0 (danielbuechele)",
    "sklearn/datasets/images/flower.jpg": "CC BY 2.0 (vultilion)",
    "pywt/data/ascent.npz": "public domain (public-domain-image.com)",
}
"""Where a package keeps it, and the rights that the package's documentation states."""
SCENES = ("camera", "coffee", "rocket", "china", "flower", "ascent")
"""Photos of whole scenes, which are cut from twice as often as the textures."""
VALIDATION_PHOTOS: dict[str, str] = {
    "skimage/data/astronaut.png": "public domain (NASA)",
    "skimage/data/chelsea.png": "CC0 (Stefan van der Walt)",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": "public domain (US Navy)",
}
MIX = {"leaves": 0.45, "face": 0.35, "photo": 0.2}


def _photo(place: str) -> Pixels | None:
    """The picture that a package keeps there, (h, w, 3) float32 0..1; None where it is not installed."""
    package, inside = place.split("/", 1)
    spec = importlib.util.find_spec(package)
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent / inside
    if file is None or not file.is_file():
        return None
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            levels = np.repeat(arrays["data"][..., None], 3, axis=2)
    else:
        levels = cv2.imread(str(file), cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(levels).astype(np.float32) / np.float32(255)


def free_photos(names: Sequence[str] | None = None) -> list[Pixels]:
    """Those of the named pictures that are installed; by default the ones to train on, scenes twice."""
    if names is None:
        names = [name for name in FREE_PHOTOS for _ in range(2 if Path(name).stem in SCENES else 1)]
    return [photo for name in names if (photo := _photo(name)) is not None]


def _dyed(piece: Pixels, rng: Rng) -> Pixels:
    """The picture's brightness in the colours of cloth, stone or skin, from a dark one to a light one."""
    dark, light = np.sort(muted_colours(rng, 2), axis=0)
    return np.asarray(dark + (light - dark) * piece.mean(axis=2, keepdims=True), np.float32)


def photo_cut(rng: Rng, size: int, photos: Sequence[Pixels]) -> Pixels:
    """A (size, size, 3) piece of a random photo, reduced by area so that it is sharp, mirrored, its light varied."""
    photo = photos[int(rng.integers(len(photos)))]
    shortest = min(photo.shape[:2])
    side = int(rng.uniform(min(size, shortest), min(shortest, 3 * size) + 1))
    y, x = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
    piece = cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    if rng.random() < 0.3:
        piece = piece.transpose(1, 0, 2)
    piece = np.clip(piece, 0, 1) ** np.float32(rng.uniform(0.75, 1.35))
    return _dyed(piece, rng) if rng.random() < 0.25 else np.asarray(piece, np.float32)


def _woven(picture: Pixels, rng: Rng, textures: Textures) -> Pixels:
    """The picture with a faint fine texture that is stronger here and weaker there, as skin, cloth and walls have it.

    What a program draws is flat between its edges. A network that has seen nothing else learns that whatever is fine
    and faint is noise, and takes the pores off real skin.
    """
    height, width = picture.shape[:2]
    small = cv2.resize(textures.cut(rng, 160, 160), (6, 6), interpolation=cv2.INTER_AREA)
    small /= small.std() + np.float32(1e-6)
    uneven = np.exp(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
    weave = textures.cut(rng, height, width)
    weave = weave - cv2.GaussianBlur(weave, (0, 0), 6)
    weave *= np.float32(rng.gamma(1.5, 0.007)) / max(float(weave.std()), 1e-6)
    return np.asarray(np.clip(picture * (1 + (weave * uneven)[..., None]), 0, 1), np.float32)


def clean_picture(rng: Rng, size: int, textures: Textures, photos: Sequence[Pixels]) -> Pixels:
    """One clean (size, size, 3) training picture of a kind drawn from `MIX`; leaves for photos where there are none."""
    kind = rng.choice(list(MIX), p=list(MIX.values()))
    if kind == "photo" and photos:
        return photo_cut(rng, size, photos)
    maker: Callable[[Rng, int, Textures], Pixels] = drawn_face if kind == "face" else dead_leaves
    picture = maker(rng, size, textures)
    return _woven(picture, rng, textures) if rng.random() < 0.8 else picture


def clean_pool(seed: int, count: int, size: int) -> NDArray[np.uint8]:
    """(count, size, size, 3) uint8 clean pictures, the same for the same seed and the same installed photos."""
    rng = np.random.default_rng(seed)
    textures, photos = Textures(rng), free_photos()
    pool = np.empty((count, size, size, 3), np.uint8)
    for index in range(count):
        pool[index] = np.rint(clean_picture(rng, size, textures, photos) * np.float32(255))
    return pool
