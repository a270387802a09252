"""Larger photos: Lanczos, or a Real-ESRGAN tile by tile. The canvas that restored faces are pasted into."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import tiles
from facefix.errors import WeightsInvalid
from facefix.types import Box, Photo, Pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_TILE_PX, _OVERLAP_PX = 256, 32


def lanczos(photo: Photo, scale: int) -> Photo:
    """The photo `scale` times as wide and high, about pixel centres, alpha with it; itself at scale 1."""
    if scale == 1:
        return photo
    size = (photo.width * scale, photo.height * scale)
    raster: Any = cv2.resize(photo.raster, size, interpolation=cv2.INTER_LANCZOS4)
    return dataclasses.replace(photo, raster=raster, alpha=_enlarged_alpha(photo, scale))


def _enlarged_alpha(photo: Photo, scale: int) -> Any:
    if photo.alpha is None:
        return None
    size = (photo.width * scale, photo.height * scale)
    if photo.alpha.min() == photo.alpha.max():  # mostly: opaque everywhere
        return np.full(size[::-1], photo.alpha[0, 0])
    return cv2.resize(photo.alpha, size, interpolation=cv2.INTER_LANCZOS4)


class Upscaler:
    """A Real-ESRGAN (or another enlarging network that spandrel knows).

    Args:
        model: (1, 3, h, w) RGB 0..1 -> the same, `factor` times as large.
        factor: how much it enlarges.
        device: where it computes.
        dtype: its arithmetic.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], factor: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model = model
        self.factor = factor
        self.device = device
        self.dtype = dtype

    def __call__(self, photo: Photo, scale: int) -> Photo:
        """The photo `scale` times as wide and high; itself at scale 1.

        The network's own factor is brought to `scale` by area reduction or Lanczos, tile row by tile row, so that
        memory holds one row of tiles in floating point. Photos keep their depth and colour space; gray stays gray.
        """
        if scale == 1:
            return photo
        dtype = photo.raster.dtype
        raster: NDArray[Any] = np.empty((photo.height * scale, photo.width * scale, 3), dtype)
        for top, rows in self._bands(photo, scale):
            if photo.meta.gray:
                rows = np.repeat(rows.mean(axis=2, keepdims=True), 3, axis=2)
            raster[top : top + rows.shape[0]] = photo.colour.from_srgb(rows, photo.meta.bits)
        return dataclasses.replace(photo, raster=raster, alpha=_enlarged_alpha(photo, scale))

    def _bands(self, photo: Photo, scale: int) -> Iterator[tuple[int, Pixels]]:
        """Finished rows of the enlarged photo, from the top: (first row, (h, W, 3) float32)."""
        down = tiles.windows(photo.height, _TILE_PX, _OVERLAP_PX)
        across = tiles.windows(photo.width, _TILE_PX, _OVERLAP_PX)
        row_weights = tiles.ramps([(a * scale, b * scale) for a, b in down])
        column_weights = tiles.ramps([(a * scale, b * scale) for a, b in across])
        carried = np.zeros((0, photo.width * scale, 3), np.float32)
        for index, (top, bottom) in enumerate(down):
            band = np.zeros(((bottom - top) * scale, photo.width * scale, 3), np.float32)
            band[: carried.shape[0]] = carried
            for (left, right), weights in zip(across, column_weights, strict=True):
                tile = self._enlarged(photo.pixels(Box(left, top, right, bottom)), scale)
                share = np.outer(row_weights[index], weights).astype(np.float32)
                band[:, left * scale : right * scale] += tile * share[..., None]
            done = (down[index + 1][0] - top if index + 1 < len(down) else bottom - top) * scale
            yield top * scale, band[:done]
            carried = band[done:]

    def _enlarged(self, pixels: Pixels, scale: int) -> Pixels:
        """One tile at `scale`."""
        import torch

        from facefix import runtime

        def compute(group: Any) -> Tensor:
            return self.model(runtime.to_batch(group, mean=0.0, std=1.0).to(self.device, self.dtype))

        with torch.inference_mode():
            [batch] = runtime.in_batches(compute, [pixels], 1)
            [tile] = runtime.from_batch(batch, mean=0.0, std=1.0)
        if self.factor == scale:
            return tile
        size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
        way = cv2.INTER_AREA if self.factor > scale else cv2.INTER_LANCZOS4
        return np.asarray(cv2.resize(tile, size, interpolation=way), np.float32)


def load(path: Path, *, device: str, precision: str) -> Upscaler:
    """The enlarging network of the file.

    Raises:
        WeightsInvalid: the file is damaged, or holds no network that enlarges pictures; or spandrel is missing.
        DeviceError: no such device or precision here.
    """
    import torch

    from facefix import networks, runtime

    where = runtime.choose_device(device)
    dtype = runtime.choose_precision(precision, where)
    state = networks.read_state(path)
    try:
        import spandrel
    except ImportError:
        raise WeightsInvalid(path, "needs spandrel to be read; run `pip install 'facefix[spandrel]'`") from None
    try:
        found = spandrel.ModelLoader().load_from_state_dict(state)
    except spandrel.UnsupportedModelError:
        names = ", ".join(list(state)[:3])
        raise WeightsInvalid(path, f"expected a Real-ESRGAN, got another network (first tensors: {names})") from None
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.purpose != "SR" or found.input_channels != 3:
        raise WeightsInvalid(path, f"expected a network that enlarges photos, got {found.architecture.name}")
    if (dtype is torch.float16 and not found.supports_half) or (
        dtype is torch.bfloat16 and not found.supports_bfloat16
    ):
        dtype = torch.float32
    found.model.eval().requires_grad_(False).to(where, dtype)
    return Upscaler(found, int(found.scale), where, dtype)
