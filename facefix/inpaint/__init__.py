"""What every inpainting engine takes and gives, and which engines there are.

An engine only invents pixels. Everything around it is the caller's: dilation and feather of the mask, which part of the
photo an engine sees, the frame that outpainting adds and the promise that known pixels keep their bits stand in
`compose`, contrast and grain in `matching`.

Importing this package loads neither torch nor OpenCV; the engines' modules do, when they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from facefix.errors import UsageError, WeightsInvalid
from facefix.recipe import Recipe
from facefix.types import Mask, Pixels, Weight
from facefix.weights import Store

Progress = Callable[[int, int], None]
"""Called with the engine's own steps: how many are done, and how many there are."""


class Engine(Protocol):
    """Something that fills a hole."""

    @property
    def name(self) -> str:
        """The engine and its weights in a few words, for reports."""

    @property
    def takes_prompt(self) -> bool:
        """Whether words steer what it draws."""

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        """The scene with its hole filled: (h, w, 3) float32 sRGB, 0..1.

        Args:
            scene: (h, w, 3) float32 sRGB, 0..1, of any size from 1 px; engines pad and resize by themselves. What it
                shows inside the hole means nothing to most engines; those that start from it say so.
            hole: (h, w) float32, 1 to be filled, 0 known, nothing between. It has at least one pixel of each.
            seed: equal seeds give equal pixels on one machine.
            progress: called with the engine's own steps.

        Returns:
            The same size. What it shows outside the hole is not used.

        Raises:
            DeviceError: the memory ran out, and smaller parts did not help.
        """


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of an engine before it is loaded.

    Args:
        name: as in `Recipe.engine`.
        weights: the record in the store that it takes where `Recipe.model` is empty; None where there is none to take.
        uses: the settings that only some engines use, and this one does.
        seeded: whether another seed gives another fill.
        network: whether a trained network invents the pixels, which the file's metadata then say.
        works_px: about how many pixels it draws at once; it shrinks what is larger. None where it does not.
        sees_px: how far from the hole anything has a say in its fill; None for all of the photo.
    """

    name: str
    weights: str | None = None
    uses: frozenset[str] = frozenset()
    seeded: bool = False
    network: bool = True
    works_px: int | None = None
    sees_px: int | None = None


_DRAWING = frozenset(
    {"model", "prompt", "negative", "hires", "denoise", "tiled", "steps", "guidance", "scheduler", "offload"}
)
KINDS = {
    kind.name: kind
    for kind in (
        Kind("cv2", network=False, sees_px=64),
        Kind("lama", "big-lama", frozenset({"model", "refine"}), works_px=1_800_000),
        Kind("face", "gpen-inpainting-1024", frozenset({"model"})),
        Kind("mat", "mat-places-512", frozenset({"model", "candidates"}), seeded=True),
        Kind("sd", None, _DRAWING | {"candidates"}, seeded=True, works_px=512 * 512),
        Kind("sdxl", None, _DRAWING | {"candidates"}, seeded=True, works_px=1024 * 1024),
    )
}
_PARTICULAR = frozenset[str]().union(*(kind.uses for kind in KINDS.values()))


def choose(recipe: Recipe, store: Store) -> tuple[Kind, str | None]:
    """The engine that the recipe asks for, and for auto one line on what would be better, where something would.

    Raises:
        UsageError: a setting that this engine cannot use was changed.
    """
    name, note = recipe.engine, None
    if name == "auto":
        name = _found(recipe.model, store)
        if name == "cv2":
            note = (
                "engine cv2 smears anything wider than a scratch; `facefix weights fetch big-lama` gets a network that "
                "continues textures"
            )
    kind = KINDS[name]
    taken = f"--engine auto took {name}" if recipe.engine == "auto" else f"--engine {name}"
    for setting, (default, _) in Recipe.settings("inpaint").items():
        if setting in _PARTICULAR - kind.uses and getattr(recipe, setting) != default:
            able = " or ".join(other.name for other in KINDS.values() if setting in other.uses)
            option = f"--{setting.replace('_', '-')}"
            why = ", whose fill is the same every time" if setting == "candidates" else ""
            raise UsageError(f"{option}: {taken}{why}, which does not use it; leave it out, or take --engine {able}")
    return kind, note


def _found(model: str, store: Store) -> str:
    """The engine of that model in the store; without one LaMa where its weights are, else cv2."""
    if not model:
        return "lama" if store.find("big-lama") is not None else "cv2"
    records = {weight.name for weight in store.named(model)}
    fitting = [kind.name for kind in KINDS.values() if kind.weights in records]
    if not fitting:
        raise UsageError(
            f"--model {model}: expected --engine lama, face, mat, sd or sdxl beside it, got auto; say which"
        )
    return fitting[0]


def load(kind: Kind, recipe: Recipe, store: Store, *, device: str) -> tuple[Engine, tuple[tuple[Weight, Path], ...]]:
    """The engine, ready, and the store's files that it was made from.

    Raises:
        WeightsError: its weights are missing, damaged, or of another kind.
        UsageError: it cannot be told what to load.
        DeviceError: no such device or precision.
    """
    if kind.name == "cv2":
        from facefix.inpaint.telea import Telea

        return Telea(), ()
    if kind.weights is None:
        return _drawing(kind, recipe, device), ()
    weight, path = store.require(recipe.model or kind.weights)
    if weight.kind not in ("face-inpainter" if kind.name == "face" else "inpainter", "unknown"):
        raise WeightsInvalid(path, f"expected a network that fills holes, got a {weight.kind}; name another --model")
    if kind.name == "face":
        from facefix import detectors
        from facefix.inpaint import gpen_face

        detector, found_by = detectors.installed(recipe.detector, store, device=device)
        filler = gpen_face.load(path, detector=detector, device=device, precision=recipe.precision)
        return filler, ((weight, path), (found_by, store.require(found_by.name)[1]))
    if kind.name == "mat":
        from facefix.inpaint import mat

        return mat.load(path, device=device), ((weight, path),)
    from facefix.inpaint import lama

    return lama.load(path, device=device, refine=recipe.refine), ((weight, path),)


def _drawing(kind: Kind, recipe: Recipe, device: str) -> Engine:
    """The engine that draws what words say."""
    if not recipe.model:
        raise UsageError(f"--model: expected a folder, a file or a name on the hub for --engine {kind.name}, got none")
    from facefix.inpaint import diffusion

    return diffusion.load(
        recipe.model,
        kind=kind.name,
        device=device,
        precision=recipe.precision,
        prompt=recipe.prompt,
        negative=recipe.negative,
        steps=recipe.steps,
        guidance=recipe.guidance,
        scheduler=recipe.scheduler,
        offload=recipe.offload,
        tiled=recipe.tiled,
    )
