"""ICC profiles: what they say they are for, what Little CMS makes of values through them, and made ones."""

from __future__ import annotations

import functools

import imagecodecs
import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]

_SIGNATURE = {b"RGB ": "rgb", b"GRAY": "gray", b"CMYK": "cmyk"}


def kind_of(icc: bytes) -> str:
    """The colour model that a profile is for: rgb, gray, cmyk or the four letters that it gives itself."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        raise ValueError("it is not a profile")
    return _SIGNATURE.get(icc[16:20], icc[16:20].decode("latin-1").strip())


def profile_of_gamma(gamma: float, chromaticities: tuple[float, ...] | None, *, gray: bool) -> bytes | None:
    """The ICC profile that a PNG's gAMA and cHRM chunks describe, or None where they describe sRGB.

    Args:
        gamma: the exponent that the samples were encoded with, as in the file (0.45455 for 1/2.2).
        chromaticities: white x y, red x y, green x y, blue x y.
        gray: whether the profile is to be a grey one.
    """
    srgb = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
    points = chromaticities if chromaticities and min(chromaticities[1::2]) > 0 else srgb
    if not 0.05 < gamma < 2 or (abs(gamma - 1 / 2.2) < 0.005 and np.allclose(points, srgb, atol=0.002)):
        return None
    if gray:
        curve: bytes = imagecodecs.cms_profile("gray", gamma=1 / gamma)
        return curve
    white, primaries = [*points[:2], 1.0], [v for i in (2, 4, 6) for v in (*points[i : i + 2], 1.0)]
    made: bytes = imagecodecs.cms_profile("rgb", whitepoint=white, primaries=primaries, gamma=1 / gamma)
    return made


@functools.lru_cache(maxsize=1)
def srgb_matrix() -> _Floats:
    """(3, 3) from linear sRGB to the XYZ (D50) of the profile connection space."""
    return xyz_of(np.eye(3), imagecodecs.cms_profile("srgb"), "rgb").T


def xyz_of(device: _Floats, icc: bytes, kind: str) -> _Floats:
    """(N, 3) XYZ (D50) of the profile connection space from (N, channels) device values of 0..1."""
    return through(device, icc, kind, imagecodecs.cms_profile("xyz"), "xyz")


def through(values: _Floats, icc: bytes, kind: str, out_icc: bytes, out_kind: str) -> _Floats:
    """(N, channels) values through Little CMS in float64, relative colorimetric."""
    if not len(values):
        return np.zeros((0, 3))
    row = np.ascontiguousarray(values, np.float64)[None]
    out = imagecodecs.cms_transform(
        row[..., 0] if kind == "gray" else row,
        icc,
        out_icc,
        colorspace=kind,
        outcolorspace=out_kind,
        outdtype=np.float64,
        intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
        flags=imagecodecs.CMS.FLAGS.NOCACHE,
    )
    first: _Floats = out[0]
    return first
