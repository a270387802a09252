"""facefix after any pipeline of diffusers: the faces of what it drew are restored, in memory, at any size.

    from diffusers import StableDiffusionInpaintPipeline
    from PIL import Image

    from facefix.integrations.diffusers import restore_images

    pipeline = StableDiffusionInpaintPipeline.from_pretrained("models/sd-inpainting", local_files_only=True)
    scene, hole = Image.open("scene.png").convert("RGB"), Image.open("hole.png").convert("L")
    drawn = pipeline("a man on a bench", image=scene, mask_image=hole, padding_mask_crop=32).images
    restored = restore_images(drawn, hole)
    restored[0].save("restored.png")

With a mask only the faces that it touches are restored, and nothing outside of it changes, bit for bit. `restore_block`
is the same for modular pipelines. diffusers itself is imported by `restore_block` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix import imagefile
from facefix.errors import UsageError
from facefix.recipe import Recipe
from facefix.types import Mask

if TYPE_CHECKING:
    from facefix.pipeline import FaceFix

_Images = TypeVar("_Images")
_FULL = 65535
_WHITES = {"I;16": _FULL, "I;16L": _FULL, "I;16B": _FULL, "I;16N": _FULL, "I": 1, "F": 1}


def restore_images(
    images: _Images, masks: Any = None, recipe: Recipe | None = None, *, device: str = "auto"
) -> _Images:
    """The images with their faces restored, in the form that they came in.

    Args:
        images: what a pipeline returns: Pillow images ("pil"), a (B, H, W, C) array ("np") or a (B, C, H, W) tensor
            ("pt"), floats in 0..1; also one image, a list of arrays or tensors, and uint8 arrays.
        masks: only where it is white may anything change: one for all images, or one for each; Pillow images, arrays
            or tensors in 0..1. Masks of another size than their image are resized to it.
        recipe: the settings; the defaults without one. What it loads is kept for the next call.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UsageError: images or masks of no form that is known, latents, or numbers that are none.
        WeightsError: a weight file that the recipe asks for is missing or damaged.

    Example:
        >>> from skimage.data import astronaut
        >>> [restored] = restore_images([Image.fromarray(astronaut())], recipe=Recipe(restorer="identity"))
        >>> restored.size
        (512, 512)
    """
    items, packed = _unpacked(images)
    chosen = _masks(masks, len(items))
    fix = _loaded(recipe or Recipe(), device)
    restored: _Images = packed([_restored(fix, item, mask) for item, mask in zip(items, chosen, strict=True)])
    return restored


def restore_block(recipe: Recipe | None = None, *, device: str = "auto") -> Any:
    """A block for modular pipelines of diffusers: `images` in, `images` out, limited to `mask_image` if there is one.

        blocks.sub_blocks.insert("restore_faces", restore_block(), len(blocks.sub_blocks))

    Args:
        recipe: the settings; the defaults without one.
        device: where it restores.
    """
    return _block_class()(recipe or Recipe(), device)


@lru_cache(maxsize=1)
def _loaded(recipe: Recipe, device: str) -> FaceFix:
    from facefix.pipeline import FaceFix

    return FaceFix.load(recipe, device=device)


@cache
def _block_class() -> Callable[..., Any]:
    import diffusers
    from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

    base: Any = diffusers.ModularPipelineBlocks

    class RestoreFaces(base):  # type: ignore[misc]
        """Restores the faces of the images that the blocks before it made."""

        def __init__(self, recipe: Recipe, device: str) -> None:
            super().__init__()
            self.recipe = recipe
            self.device = device

        @property
        def description(self) -> str:
            """What it does, for diffusers' listings."""
            return "Restores the faces in `images`; with `mask_image`, only those that it touches, and only inside it."

        @property
        def inputs(self) -> list[Any]:
            """What it takes from the state."""
            mask = "Where anything may change; white is where it may."
            return [
                InputParam("images", required=True, description="The images to restore."),
                InputParam("mask_image", description=mask),
            ]

        @property
        def intermediate_outputs(self) -> list[Any]:
            """What it gives to the state."""
            return [OutputParam("images", description="The images, their faces restored.")]

        def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
            """The components as they are, and the state with restored images."""
            block = self.get_block_state(state)
            block.images = restore_images(block.images, block.mask_image, self.recipe, device=self.device)
            self.set_block_state(state, block)
            return components, state

    return RestoreFaces


# --- forms of images -------------------------------------------------------------------------------------------------


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor of torch, which need not be imported to tell."""
    return hasattr(value, "detach") and hasattr(value, "new_tensor")


def _numpy(tensor: Any) -> NDArray[Any]:
    """The tensor as an array; floats as float32, which NumPy has in every precision of theirs."""
    plain = tensor.detach().cpu()
    return np.asarray(plain.float() if plain.is_floating_point() else plain)


def _unpacked(images: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The single images, and what puts such a list back into the form that they came in."""
    if isinstance(images, list | tuple):
        return list(images), list
    if (isinstance(images, np.ndarray) or _is_tensor(images)) and images.ndim == 4:
        return list(images), _stacked_tensors if _is_tensor(images) else np.stack
    return [images], lambda restored: restored[0]


def _stacked_tensors(tensors: list[Any]) -> Any:
    import torch

    return torch.stack(tensors)


def _restored(fix: FaceFix, item: Any, mask: Any) -> Any:
    """One image, restored."""
    if isinstance(item, Image.Image):
        result = fix(item, mask=_fitted(mask, item.width, item.height)).photo
        return imagefile.to_pil(result)
    if _is_tensor(item):
        array = _numpy(item).transpose(1, 2, 0) if item.ndim == 3 else item
        return item.new_tensor(_restored_array(fix, array, mask).transpose(2, 0, 1))
    return _restored_array(fix, item, mask)


def _restored_array(fix: FaceFix, array: Any, mask: Any) -> NDArray[Any]:
    """One (H, W, C) array, restored; floats that did not change keep all their bits."""
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        got = f"shape {tuple(array.shape)}" if hasattr(array, "shape") else type(array).__name__
        raise UsageError(
            f"images: expected Pillow images, (B, H, W, C) arrays or (B, C, H, W) tensors, got {got}; give `.images` "
            "of a pipeline with output_type pil, np or pt"
        )
    allowed = _fitted(mask, array.shape[1], array.shape[0])
    if array.dtype == np.uint8:
        return _channels(fix(array, mask=allowed).photo, array.shape[2])
    if array.dtype.kind != "f" or not np.isfinite(array).all() or array.min() < -1e-3 or array.max() > 1 + 1e-3:
        raise UsageError(
            "images: expected uint8, or floats in 0..1, got other numbers; decode latents first (output_type pil, np "
            "or pt), and see whether the pipeline gave NaN"
        )
    whole = np.rint(np.clip(array.astype(np.float32), 0, 1) * _FULL).astype(np.uint16)
    made = _channels(fix(whole, mask=allowed).photo, array.shape[2])
    floats = (made.astype(np.float32) / np.float32(_FULL)).astype(array.dtype)
    return np.where(made == whole, array, floats) if made.shape == whole.shape else floats


def _channels(photo: Any, count: int) -> NDArray[Any]:
    """The photo as (H, W, count): grey, RGB, or RGB and alpha."""
    if count == 4:
        return np.dstack([photo.raster, photo.alpha])
    return np.asarray(photo.raster[..., :count])


# --- masks -----------------------------------------------------------------------------------------------------------


def _masks(masks: Any, count: int) -> Sequence[Any]:
    """A mask, or None, for each of `count` images."""
    batch = (isinstance(masks, np.ndarray) or _is_tensor(masks)) and (
        masks.ndim == 4 or (masks.ndim == 3 and 1 not in (masks.shape[0], masks.shape[2]))
    )
    if not batch and not isinstance(masks, list | tuple):
        return [masks] * count
    each = list(masks)
    if len(each) == 1:
        return each * count
    if len(each) != count:
        raise UsageError(f"masks: expected one, or {count} as there are images, got {len(each)}")
    return each


def _fitted(mask: Any, width: int, height: int) -> Mask | None:
    """The mask as (height, width) float32 in 0..1, or None."""
    if mask is None:
        return None
    plane: Any
    if isinstance(mask, Image.Image):
        white = _WHITES.get(mask.mode)  # what has more than 8 bits, `convert` would clip at 255
        plane = np.asarray(mask if white else mask.convert("L"), np.float32) / (white or 255)
    else:
        array = _numpy(mask) if _is_tensor(mask) else np.asarray(mask)
        numbers = array if array.dtype.kind in "buif" else np.full(array.shape, np.nan)
        plane = np.squeeze(numbers).astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    if plane.ndim != 2 or not np.isfinite(plane).all() or plane.min() < 0 or plane.max() > 1:
        raise UsageError(f"masks: expected (H, W) in 0..1 or Pillow images, got {type(mask).__name__} {plane.shape}")
    if plane.shape == (height, width):
        return np.asarray(plane, np.float32)
    plane = Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(plane, np.float32).clip(0, 1)
