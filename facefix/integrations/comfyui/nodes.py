"""Nodes for ComfyUI: restore, restore inside a mask, and inpaint.

An IMAGE is (B, H, W, 3) float RGB in 0..1 (a fourth channel is taken as alpha), a MASK (B, H, W) or (H, W) float. One
mask serves a whole batch. Pixels are worked on in 16 bit; where nothing changed, the very floats that came in go out.

The inputs of each node are the settings of `Recipe`, with their limits and their help as tooltips.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from facefix import imagefile
from facefix.errors import UsageError
from facefix.inpaint import compose
from facefix.inpainting import Inpainter
from facefix.jobs.rows import report_json
from facefix.pipeline import FaceFix
from facefix.recipe import Command, Recipe, Setting
from facefix.types import Photo, Report, Result

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]

_LEVELS = np.float32(65535)
_MOST = 2**31 - 1
_LEFT_OUT = {"ai_label", "candidates"}  # no file is written here, and a batch of seeds is ComfyUI's own business
_LONG = {"prompt", "negative"}


class Restore:
    """Restores the faces of every image."""

    CATEGORY = "image/facefix"
    DESCRIPTION = "Finds the faces of each image and restores them; everything else stays as it was, bit for bit."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "report")
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """What ComfyUI shows and checks: the image and a widget for each setting."""
        return {"required": {"image": ("IMAGE",), **_widgets("restore")}}

    def restore(self, image: Tensor, **settings: Any) -> tuple[Tensor, str]:
        """The images with their faces restored, and a report on each as JSON."""
        fix = _fix(Recipe.from_mapping(settings, "facefix"))
        return _each(image, None, lambda photo, _: fix(photo))


class RestoreMasked:
    """Restores the faces of every image, only where the mask is white."""

    CATEGORY = Restore.CATEGORY
    DESCRIPTION = "Restores the faces that the mask touches, inside the mask only; its grey counts in part."
    RETURN_TYPES, RETURN_NAMES = Restore.RETURN_TYPES, Restore.RETURN_NAMES
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """What ComfyUI shows and checks: image, mask and a widget for each setting."""
        return {"required": {"image": ("IMAGE",), "mask": ("MASK",), **_widgets("restore")}}

    def restore(self, image: Tensor, mask: Tensor, **settings: Any) -> tuple[Tensor, str]:
        """The images with their faces restored inside the mask, and a report on each as JSON."""
        fix = _fix(Recipe.from_mapping(settings, "facefix"))
        return _each(image, mask, lambda photo, allowed: fix(photo, mask=allowed))


class Inpaint:
    """Fills the hole of every image, and restores the faces that it touches."""

    CATEGORY = Restore.CATEGORY
    DESCRIPTION = (
        "Fills what the mask shows in white, then restores the faces that it touches. An empty mask fills nothing."
    )
    RETURN_TYPES, RETURN_NAMES = Restore.RETURN_TYPES, Restore.RETURN_NAMES
    FUNCTION = "inpaint"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """What ComfyUI shows and checks: image, mask and a widget for each setting."""
        return {"required": {"image": ("IMAGE",), "mask": ("MASK",), **_widgets("inpaint")}}

    def inpaint(self, image: Tensor, mask: Tensor, **settings: Any) -> tuple[Tensor, str]:
        """The images with their holes filled, and a report on each as JSON."""
        recipe = Recipe.from_mapping(settings, "facefix")

        def fill(photo: Photo, hole: Floats) -> Result:
            if not (hole >= 0.5).any() and not recipe.outpaint:
                nothing = Report(None, None, photo.width, photo.height, recipe.values("inpaint"), {}, (), 0.0)
                return Result(photo, dataclasses.replace(nothing, warnings=("the mask is empty",)))
            return _painter(recipe)(photo, hole)

        return _each(image, mask, fill)


NODE_CLASS_MAPPINGS = {"FacefixRestore": Restore, "FacefixRestoreMasked": RestoreMasked, "FacefixInpaint": Inpaint}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FacefixRestore": "Restore Faces (facefix)",
    "FacefixRestoreMasked": "Restore Faces in Mask (facefix)",
    "FacefixInpaint": "Inpaint, then Restore Faces (facefix)",
}


def _widgets(command: Command) -> dict[str, Any]:
    settings = Recipe.settings(command)
    return {name: _widget(name, *pair) for name, pair in settings.items() if name not in _LEFT_OUT}


def _widget(name: str, default: Any, setting: Setting) -> tuple[Any, dict[str, Any]]:
    """ComfyUI's type of one setting and its options."""
    options: dict[str, Any] = {"default": default, "tooltip": setting.help}
    if setting.choices:
        return list(setting.choices), options
    if isinstance(default, bool):
        return "BOOLEAN", options
    if isinstance(default, str):
        return "STRING", options | {"multiline": name in _LONG}
    low = 0 if setting.minimum is None else setting.minimum
    high = _MOST if setting.maximum is None else min(setting.maximum, _MOST)
    if isinstance(default, int):
        return "INT", options | {"min": int(low), "max": int(high)}
    return "FLOAT", options | {"min": float(low), "max": float(high), "step": 0.01}


def _each(image: Tensor, mask: Tensor | None, work: Callable[[Photo, Any], Result]) -> tuple[Tensor, str]:
    """The batch after `work` on each photo and its mask, and the reports as a JSON list."""
    import torch

    pictures = image.detach().cpu().numpy().astype(np.float32, copy=False)
    if pictures.ndim != 4 or pictures.shape[3] not in (3, 4) or not pictures.size:
        raise UsageError(f"image: expected (B, H, W, 3), got {pictures.shape}; give an IMAGE")
    done, reports = [], []
    for picture, drawn in zip(pictures, _masks(mask, pictures.shape), strict=True):
        new, report = _one(picture, drawn, work)
        done.append(torch.from_numpy(new))
        reports.append(report)
    return torch.stack(done).to(image.device), json.dumps(reports)


def _masks(mask: Tensor | None, shape: tuple[int, ...]) -> Iterator[Floats | None]:
    """One mask for each image; an empty one of another size, as comes with an image without alpha, counts as empty."""
    count, height, width = shape[:3]
    if mask is None:
        yield from [None] * count
        return
    drawn = mask.detach().cpu().numpy().astype(np.float32)
    drawn = drawn[None] if drawn.ndim == 2 else drawn
    if not drawn.any():
        drawn = np.zeros((1, height, width), np.float32)
    if drawn.ndim != 3 or drawn.shape[1:] != (height, width) or drawn.shape[0] not in (1, count):
        expected = " or ".join(f"({number}, {height}, {width})" for number in sorted({1, count}))
        raise UsageError(f"mask: expected {expected} as the image, got {drawn.shape}; make one of the image's size")
    yield from np.clip(np.broadcast_to(drawn, (count, height, width)), 0, 1)


def _one(picture: Floats, drawn: Floats | None, work: Callable[[Photo, Any], Result]) -> tuple[Floats, dict[str, Any]]:
    """One image after `work`, (H', W', 3 or 4), and its report."""
    levels = np.rint(np.clip(np.nan_to_num(picture), 0, 1) * _LEVELS).astype(np.uint16)
    result = work(imagefile.from_array(levels), drawn)
    photo, report = result.photo, result.report
    codes: NDArray[Any] = photo.raster if photo.alpha is None else np.dstack([photo.raster, photo.alpha])
    new = np.asarray(codes / _LEVELS, np.float32)
    height, width = picture.shape[:2]
    by = compose.margins(report.recipe.get("outpaint", ""), width, height)
    if codes.shape[:2] == (height + by.top + by.bottom, width + by.left + by.right):
        inner = np.s_[by.top : by.top + height, by.left : by.left + width]
        new[inner] = np.where(codes[inner] == levels, picture, new[inner])
    return new, report_json(report) | ({"fill": dict(report.fill)} if report.fill else {})


def _fix(recipe: Recipe) -> FaceFix:
    """What restores by this recipe; networks stay loaded while only the seed changes."""
    return _loaded_fix(dataclasses.replace(recipe, seed=0)).with_recipe(recipe)


def _painter(recipe: Recipe) -> Inpainter:
    """What inpaints by this recipe; networks stay loaded while only the seed changes."""
    return _loaded_painter(dataclasses.replace(recipe, seed=0)).with_recipe(recipe)


@lru_cache(maxsize=1)
def _loaded_fix(recipe: Recipe) -> FaceFix:
    return FaceFix.load(recipe)


@lru_cache(maxsize=1)
def _loaded_painter(recipe: Recipe) -> Inpainter:
    return Inpainter.load(recipe)
