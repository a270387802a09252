"""The way from a file's own colours to sRGB and back: ICC profiles, grey files, CMYK.

Profiles are evaluated by Little CMS (through imagecodecs) in floating point. A profile made of three curves and a
matrix, as nearly all photos carry, is sampled once into those and then applied by table look-up; any other profile
goes through Little CMS for every call, and its inverse is found by Newton's method, so that both kinds come back to
the code that they left from. Colours outside sRGB become values below 0 or above 1 (the sRGB curve mirrored at 0),
because clipping them would change the photo on the way back.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from facefix.imagefile.found import one_line
from facefix.imagefile.profile import kind_of, srgb_matrix, through, xyz_of
from facefix.types import ColourSpace, Pixels, PlainSRGB, Raster

_Floats = NDArray[np.float64]

_BAND = 1 << 18  # pixels converted at a time: the temporaries of one band stay near the cache
_NODES = {8: 255 * 16 + 1, 16: 65536}  # every 8-bit code is a node of the finer 8-bit table
_SAME_AS_SRGB = 2.5e-3  # the oldest sRGB profile (HP, 1998) is off by 0.0018 near black; what is nearer is sRGB
_SAME_MODEL = 5e-4  # curves and matrix against Little CMS: an eighth of an 8-bit level
_LUMA = np.array([0.2126, 0.7152, 0.0722])
_VECTOR = 64  # pixels; a multiple of what any processor takes at once


def encode_srgb(linear: _Floats) -> _Floats:
    """The sRGB-encoded values of linear light; negative values mirrored.

    Args:
        linear: any shape, 0..1 for colours inside sRGB.

    Source: IEC 61966-2-1, with the extension to negative values of CSS Color 4, section 10.2.
    """
    size = np.abs(linear)
    curve = 1.055 * np.power(size, 1 / 2.4) - 0.055
    return np.copysign(np.where(size <= 0.0031308, 12.92 * size, curve), linear)


def decode_srgb(encoded: _Floats) -> _Floats:
    """The linear light of sRGB-encoded values: the inverse of `encode_srgb`."""
    size = np.abs(encoded)
    curve = np.power((size + 0.055) / 1.055, 2.4)
    return np.copysign(np.where(size <= 0.04045, size / 12.92, curve), encoded)


class _Space(ABC):
    """A colour space that converts (N, 3) pixels, applied to pictures band by band."""

    def to_srgb(self, raster: Raster) -> Pixels:
        """The (h, w, 3) raster as sRGB-encoded float32; outside 0..1 where sRGB does not reach."""
        pixels = np.empty(raster.shape, np.float32)
        for rows in _bands(raster.shape):
            pixels[rows] = self._forward(raster[rows].reshape(-1, 3)).reshape(pixels[rows].shape)
        return pixels

    def from_srgb(self, pixels: Pixels, bits: int) -> Raster:
        """The (h, w, 3) sRGB-encoded pixels, clipped and rounded, as uint8 (bits 8) or uint16 (bits 16)."""
        raster: Raster = np.empty(pixels.shape, np.uint8) if bits == 8 else np.empty(pixels.shape, np.uint16)
        for rows in _bands(pixels.shape):
            device = np.clip(self._back(pixels[rows].reshape(-1, 3).astype(np.float64)), 0, 1)
            raster[rows] = np.rint(device * (2**bits - 1)).reshape(raster[rows].shape)
        return raster

    @abstractmethod
    def _forward(self, codes: Raster) -> _Floats:
        """(N, 3) codes to (N, 3) sRGB-encoded values."""

    @abstractmethod
    def _back(self, encoded: _Floats) -> _Floats:
        """(N, 3) sRGB-encoded values to (N, 3) device values, about 0..1."""


class _Curves(_Space):
    """Three curves and a matrix.

    Args:
        curves: (3, n) linear light at n evenly spaced device values, increasing from about 0 to 1.
        srgb_from_linear: (3, 3) to linear sRGB.
    """

    def __init__(self, curves: _Floats, srgb_from_linear: _Floats) -> None:
        self._curves = curves
        self._matrix = srgb_from_linear
        self._inverse = np.linalg.inv(srgb_from_linear)

    def _forward(self, codes: Raster) -> _Floats:
        step = (self._curves.shape[1] - 1) // int(np.iinfo(codes.dtype).max)
        if step == 0:  # 16-bit codes against the coarser table
            at = codes * ((self._curves.shape[1] - 1) / 65535)
            nodes = np.arange(self._curves.shape[1])
            linear = np.stack([np.interp(at[:, c], nodes, self._curves[c]) for c in range(3)], axis=1)
        else:
            tables = self._curves[:, ::step]
            linear = np.stack([tables[c][codes[:, c]] for c in range(3)], axis=1)
        return encode_srgb(_turned(linear, self._matrix))

    def _back(self, encoded: _Floats) -> _Floats:
        linear = _turned(decode_srgb(encoded), self._inverse)
        nodes = np.linspace(0, 1, self._curves.shape[1])
        return np.stack([np.interp(linear[:, c], self._curves[c], nodes) for c in range(3)], axis=1)


class _Curves8(_Curves):
    """The same for 8-bit files, several times as fast: powers and searches become look-ups in float32.

    Linear light is indexed by its root, in which both sRGB and the usual gammas are nearly straight.
    """

    _TOP = 1.5  # root of linear light; the corners of the widest profiles in use are at 1.44
    _NODES = 1 << 16
    _LOW, _HIGH, _PER_UNIT = -1.25, 1.75, 1 << 13  # sRGB-encoded values

    def __init__(self, curves: _Floats, srgb_from_linear: _Floats) -> None:
        super().__init__(curves, srgb_from_linear)
        small = curves[:, :: (curves.shape[1] - 1) // 255]
        self._small = np.ascontiguousarray(small.T.reshape(1, 256, 3), np.float32)
        linear = np.square(np.linspace(0, self._TOP, self._NODES))
        codes = [np.interp(linear, curve, np.linspace(0, 255, curves.shape[1])) for curve in curves]
        self._codes = np.rint(np.stack(codes)).astype(np.uint8)
        self._encoded = encode_srgb(linear).astype(np.float32)
        grid = np.arange(round((self._HIGH - self._LOW) * self._PER_UNIT) + 1) / self._PER_UNIT + self._LOW
        self._decoded = decode_srgb(grid).astype(np.float32)

    def to_srgb(self, raster: Raster) -> Pixels:
        """As `_Space.to_srgb`."""
        if raster.dtype != np.uint8:
            return super().to_srgb(raster)
        pixels = np.empty(raster.shape, np.float32)
        for rows in _bands(raster.shape):
            light: Any = cv2.LUT(raster[rows], self._small)
            linear = _turned(light.reshape(pixels[rows].shape), self._matrix)
            encoded = _between(self._encoded, self._place(np.abs(linear)))
            np.copysign(encoded, linear, out=pixels[rows])
        return pixels

    def from_srgb(self, pixels: Pixels, bits: int) -> Raster:
        """As `_Space.from_srgb`."""
        if bits != 8:
            return super().from_srgb(pixels, bits)
        raster = np.empty(pixels.shape, np.uint8)
        for rows in _bands(pixels.shape):
            at = np.clip(pixels[rows], self._LOW, self._HIGH)
            at -= np.float32(self._LOW)
            at *= np.float32(self._PER_UNIT)
            linear = _turned(_between(self._decoded, at), self._inverse)
            places = self._place(np.maximum(linear, 0, out=linear))
            places += np.float32(0.5)
            nodes = places.astype(np.int32)
            for channel in range(3):
                raster[rows, :, channel] = self._codes[channel][nodes[..., channel]]
        return raster

    def _place(self, linear: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where linear light, not negative, stands in the tables; overwrites it."""
        at = np.sqrt(linear, out=linear)
        at *= np.float32((self._NODES - 1) / self._TOP)
        return np.minimum(at, np.float32(self._NODES - 1), out=at)


def _between(table: NDArray[np.float32], at: NDArray[np.float32]) -> NDArray[np.float32]:
    """The table's values at places between its nodes, linearly; overwrites the places."""
    left = np.minimum(at.astype(np.int32), len(table) - 2)
    values: NDArray[np.float32] = table[1:][left]
    at -= left
    low = table[left]
    values -= low
    values *= at
    values += low
    return values


class _Tables(_Space):
    """Any other RGB profile (look-up tables), evaluated by Little CMS and inverted by Newton's method."""

    _TOLERANCE = 0.1 / 65535
    _STEP = 1 / 512  # Little CMS keeps tables in 16 bits: differences over less are mostly rounding
    _ROUNDS = 24

    def __init__(self, icc: bytes) -> None:
        self._icc = icc

    def _forward(self, codes: Raster) -> _Floats:
        return self._evaluate(codes / float(np.iinfo(codes.dtype).max))

    def _evaluate(self, device: _Floats) -> _Floats:
        return encode_srgb(_turned(xyz_of(device, self._icc, "rgb"), np.linalg.inv(srgb_matrix())))

    def _back(self, encoded: _Floats) -> _Floats:
        best = self._first_guess(encoded)
        least, reach = np.full(len(best), np.inf), np.ones(len(best))
        todo, tried, moves = np.arange(len(best)), best, np.zeros_like(best)
        for _ in range(self._ROUNDS):
            reached = self._evaluate(tried)
            missing = encoded[todo] - reached
            size = np.abs(missing).max(axis=1)
            better = size < least[todo]
            best[todo[better]], least[todo[better]] = tried[better], size[better]
            reach[todo] = np.where(better, 1.0, reach[todo] / 2)  # a step that missed is tried again, half as long
            moves[todo[better]] = self._newton(tried[better], reached[better], missing[better])
            todo = todo[(least[todo] > self._TOLERANCE) & (reach[todo] > 1 / 64)]
            if not todo.size:
                break
            tried = np.clip(best[todo] + reach[todo, None] * moves[todo], 0, 1)
        return best

    def _first_guess(self, encoded: _Floats) -> _Floats:
        xyz = _turned(decode_srgb(encoded), srgb_matrix())
        try:
            device = through(xyz, imagecodecs.cms_profile("xyz"), "xyz", self._icc, "rgb")
        except imagecodecs.CmsError:  # a scanner's profile knows the one way only
            device = encoded
        return np.clip(device, 0, 1)

    def _newton(self, device: _Floats, reached: _Floats, missing: _Floats) -> _Floats:
        slopes = np.empty((len(device), 3, 3))
        for channel in range(3):
            step = np.where(device[:, channel] > 0.5, -self._STEP, self._STEP)
            moved = device.copy()
            moved[:, channel] += step
            slopes[:, :, channel] = (self._evaluate(moved) - reached) / step[:, None]
        slopes += 1e-6 * np.eye(3)  # a flat spot of the profile must not stop the others
        moves = np.linalg.solve(slopes, missing[:, :, None])[:, :, 0].astype(np.float64)
        return np.clip(moves, -0.25, 0.25)


class _GrayCurve(_Space):
    """A grey profile: one curve to linear light, the same in all three channels."""

    def __init__(self, curve: _Floats) -> None:
        self._encoded = encode_srgb(curve)

    def _forward(self, codes: Raster) -> _Floats:
        nodes = np.linspace(0, np.iinfo(codes.dtype).max, len(self._encoded))
        return np.repeat(np.interp(codes[:, :1], nodes, self._encoded), 3, axis=1)

    def _back(self, encoded: _Floats) -> _Floats:
        return np.interp(encoded, self._encoded, np.linspace(0, 1, len(self._encoded)))


class _Gray:
    """The colour space of a grey file: what comes back has three equal channels, the luma of what was given."""

    def __init__(self, inner: ColourSpace) -> None:
        self._inner = inner

    def to_srgb(self, raster: Raster) -> Pixels:
        """The (h, w, 3) raster of equal channels as sRGB-encoded float32, 0..1."""
        return self._inner.to_srgb(raster)

    def from_srgb(self, pixels: Pixels, bits: int) -> Raster:
        """The luma (Rec. 709 weights on encoded values) of the (h, w, 3) pixels in three equal channels."""
        luma = np.repeat(_turned(pixels, _LUMA[None]), 3, axis=2)
        codes = self._inner.from_srgb(luma, bits)
        # an RGB profile's greys need not be neutral to the last bit
        codes[..., 0] = codes[..., 1]
        codes[..., 2] = codes[..., 1]
        return codes


def gray_of(raster: Raster) -> Raster:
    """The (H, W) grey of a raster: its first channel where all are equal, else the Rec. 709 luma of its codes."""
    first: Any = np.ascontiguousarray(raster[..., 0])
    if np.array_equal(first, raster[..., 1]) and np.array_equal(first, raster[..., 2]):
        only: Raster = first
        return only
    gray: Raster = np.empty_like(first)
    for rows in _bands(raster.shape):
        gray[rows] = np.rint(_turned(raster[rows].astype(np.float64), _LUMA[None])[..., 0])
    return gray


def space(icc: bytes | None, *, bits: int, gray: bool) -> tuple[ColourSpace, str | None]:
    """The colour space of a file and, where its profile cannot be used, why.

    Args:
        icc: the embedded profile, or None.
        bits: 8 or 16, of the raster.
        gray: whether the file is grey; its raster then has three equal channels.
    """
    plain: ColourSpace = _Gray(PlainSRGB()) if gray else PlainSRGB()
    if icc is None:
        return plain, None
    try:
        return _space(icc, bits, gray), None
    except (imagecodecs.CmsError, ValueError, np.linalg.LinAlgError) as error:
        return plain, f"the ICC profile cannot be used ({one_line(error)}); the colours are taken as sRGB"


@functools.lru_cache(maxsize=16)
def _space(icc: bytes, bits: int, gray: bool) -> ColourSpace:
    kind = kind_of(icc)
    nodes = _NODES[bits]
    if kind == "gray" and gray:
        luminance = xyz_of(np.linspace(0, 1, nodes)[:, None], icc, "gray")[:, 1]
        return _Gray(_GrayCurve(_increasing(luminance / luminance[-1])))
    if kind != "rgb":
        raise ValueError(f"it is for {kind}, the picture is {'grey' if gray else 'RGB'}")
    inner = _rgb_space(icc, nodes)
    return _Gray(inner) if gray else inner


def _rgb_space(icc: bytes, nodes: int) -> ColourSpace:
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 3), axis=-1).reshape(-1, 3)
    truth = xyz_of(grid, icc, "rgb")
    if not np.isfinite(truth).all() or np.ptp(truth[:, 1]) < 0.05:
        raise ValueError("it maps all colours to one")
    encoded = encode_srgb(truth @ np.linalg.inv(srgb_matrix()).T)
    if np.abs(encoded - grid).max() < _SAME_AS_SRGB:
        return PlainSRGB()
    ramps = np.zeros((3, nodes, 3))
    for channel in range(3):
        ramps[channel, :, channel] = np.linspace(0, 1, nodes)
    black = truth[0]
    xyz = xyz_of(ramps.reshape(-1, 3), icc, "rgb").reshape(3, nodes, 3) - black
    matrix = xyz[:, -1].T
    sizes = matrix.sum(axis=0)
    if np.abs(black).max() > 1e-5 or np.abs(sizes).min() < 1e-3:
        return _Tables(icc)
    curves = np.stack([_increasing(xyz[c].sum(axis=1) / sizes[c]) for c in range(3)])
    model = (_Curves8 if nodes == _NODES[8] else _Curves)(curves, np.linalg.inv(srgb_matrix()) @ matrix)
    codes = np.rint(grid * 65535).astype(np.uint16)
    return model if np.abs(model.to_srgb(codes[None])[0] - encoded).max() < _SAME_MODEL else _Tables(icc)


def _increasing(curve: _Floats) -> _Floats:
    """The curve made strictly increasing, so that every code has its own value; raises where it is no tone curve."""
    if not np.isfinite(curve).all() or curve[-1] - curve[0] < 0.5:
        raise ValueError("its tone curve is not one")
    curve = np.maximum.accumulate(curve)
    if (np.diff(curve) > 0).all():
        return curve
    slope = np.linspace(0, 1, len(curve))
    return curve + 1e-4 * (slope - curve)


def srgb_from_cmyk(cmyk: Raster, icc: bytes | None) -> tuple[Raster, str | None]:
    """The (H, W, 3) sRGB raster of (H, W, 4) ink (0 none, full scale solid), and what to tell about it.

    With a CMYK profile by Little CMS, relative colorimetric with black point compensation; without one, by
    (1 - ink)·(1 - black), as image viewers do.
    """
    full = int(np.iinfo(cmyk.dtype).max)
    raster: Raster = np.empty((*cmyk.shape[:2], 3), cmyk.dtype)
    problem = None
    if icc is not None:
        try:
            if kind_of(icc) != "cmyk":
                raise ValueError(f"it is for {kind_of(icc)}, the picture is CMYK")
            for rows in _bands(cmyk.shape):
                raster[rows] = imagecodecs.cms_transform(
                    np.ascontiguousarray(cmyk[rows]),
                    icc,
                    imagecodecs.cms_profile("srgb"),
                    colorspace="cmyk",
                    outcolorspace="rgb",
                    intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
                    flags=imagecodecs.CMS.FLAGS.BLACKPOINTCOMPENSATION,
                )
            return raster, None
        except (imagecodecs.CmsError, ValueError) as error:
            problem = f"the ICC profile cannot be used ({one_line(error)}); the inks are taken as ideal"
    for rows in _bands(cmyk.shape):
        light = full - cmyk[rows].astype(np.uint32)
        raster[rows] = (light[..., :3] * light[..., 3:] + full // 2) // full
    return raster, problem


def _turned(colours: NDArray[Any], matrix: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """The matrix (n, 3) times each colour of (…, 3) floats -> (…, n), whatever stands beside it to the last bit.

    By OpenCV: BLAS would spread so thin a product over all cores, and keep them spinning for a while after it.
    """
    count = colours.size // 3
    # whole vectors: what is left over would be rounded otherwise
    padded = np.zeros((-(-max(count, 1) // _VECTOR) * _VECTOR, 1, 3), colours.dtype)
    padded[:count] = colours.reshape(-1, 1, 3)
    turned: Any = cv2.transform(padded, matrix)
    return np.asarray(turned)[:count].reshape(*colours.shape[:-1], len(matrix))


def _bands(shape: tuple[int, ...]) -> list[slice]:
    if 0 in shape:  # which OpenCV does not take
        return []
    height = max(1, _BAND // shape[1])
    return [slice(top, top + height) for top in range(0, shape[0], height)]
