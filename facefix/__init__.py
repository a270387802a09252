"""facefix finds, aligns and restores the faces of a photo, and puts them back so that nobody can see where.

    from facefix import FaceFix
    result = FaceFix.load()("photo.jpg")

Importing facefix is cheap: torch and OpenCV are loaded when the first network is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facefix.errors import FacefixError
    from facefix.imagefile import read, write
    from facefix.inpainting import Inpainter
    from facefix.pipeline import FaceFix
    from facefix.recipe import Recipe
    from facefix.types import Face, FaceNote, Photo, Report, Result
    from facefix.weights import Store

__version__ = "0.1.0"

_HOMES = {
    "FaceFix": "pipeline",
    "Inpainter": "inpainting",
    "Recipe": "recipe",
    "Photo": "types",
    "Face": "types",
    "FaceNote": "types",
    "Report": "types",
    "Result": "types",
    "Store": "weights",
    "FacefixError": "errors",
    "read": "imagefile",
    "write": "imagefile",
}

__all__ = [
    "Face",
    "FaceFix",
    "FaceNote",
    "FacefixError",
    "Inpainter",
    "Photo",
    "Recipe",
    "Report",
    "Result",
    "Store",
    "__version__",
    "read",
    "write",
]


def __getattr__(name: str) -> Any:
    """The public name, from the module that is its home (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'facefix' has no attribute {name!r}")
    return getattr(import_module(f"facefix.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
