"""Every setting that can change a pixel, in one place.

The command line, the web page and saved recipes are all made from the fields of `Recipe`: name, default, limits and
help stand here once. Two runs with equal recipes, weights and sources give equal pixels.

Each setting belongs to `restore`, to `inpaint`, or to both; `colorize` uses a few of both and one of its own. A recipe
holds all of them, but options, reports and digests of one command speak only of what that command uses: a recipe for
inpainting does not change what `restore` makes, nor the digest by which finished photos are found again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from facefix.errors import UsageError

Command = Literal["restore", "inpaint", "colorize"]

_COLORIZE = frozenset(
    {"detector", "face", "min_face", "threshold", "rotations", "mask_from", "feather", "precision", "ai_label"}
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one field of `Recipe` besides its type and default; `only` names the one command that has it."""

    help: str
    choices: tuple[str | int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    only: Command | None = None


def _setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str | int, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    only: Command | None = None,
) -> Any:
    return dataclasses.field(default=default, metadata={"setting": Setting(help, choices, minimum, maximum, only)})


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of one restoration or inpainting; invalid values are refused when it is made.

    Raises:
        UsageError: a value has the wrong type, is out of its limits, or is not one of its choices.

    Example:
        >>> Recipe(strength=0.7).strength
        0.7
    """

    restorer: str = _setting(
        "auto",
        "Network that restores the faces: auto picks for each face among the weights that are there; identity changes "
        "nothing and pattern adds a test pattern (both check the geometry); else a name from `facefix weights list` "
        "or the path of a weight file.",
    )
    detector: str = _setting(
        "auto",
        "What finds the faces. auto: RetinaFace-R50 where its weights are, else CenterFace.",
        choices=("auto", "centerface", "retinaface_resnet50", "retinaface_mobile0.25", "yunet"),
    )
    strength: float = _setting(
        1.0, "How much of the restored face to take: 0 nothing, 1 all.", minimum=0.0, maximum=1.0
    )
    scale: int = _setting(1, "Enlarge the photo by this factor.", choices=(1, 2, 4), only="restore")
    upscaler: str = _setting(
        "lanczos", "How the rest of the photo is enlarged: lanczos, or a Real-ESRGAN from `facefix weights list`."
    )
    face: str = _setting(
        "all",
        "Which faces: all, largest, center, or numbers as in the report, from left to right, for example 1,3.",
    )
    min_face: int = _setting(16, "Leave faces narrower than this many pixels alone.", minimum=0)
    threshold: float = _setting(
        0.0, "Lowest detection score that counts as a face; 0 takes the detector's own.", minimum=0.0, maximum=1.0
    )
    rotations: str = _setting(
        "auto",
        "Look for faces in a scan that lies on its side: auto tries it when few are found upright.",
        choices=("auto", "always", "never"),
    )
    mask_from: str = _setting(
        "landmarks",
        "What shapes the soft masks: the landmarks, or a face parser where its weights are; crop takes all that the "
        "network sees, hair and surroundings of a portrait included, and fades out at its edge.",
        choices=("landmarks", "parsenet", "bisenet", "crop"),
    )
    feather: float = _setting(
        0.18, "Width of a face mask's soft edge as a part of the face's width.", minimum=0.02, maximum=0.5
    )
    colour: str = _setting(
        "auto",
        "Colours of a restored face. match: as in the photo around it; keep: the photo's own chroma, only the "
        "brightness is restored; free: as the network made them; auto: keep in black-and-white and sepia photos, "
        "match in others. A hole that a network fills keeps to the tone of such photos, too, unless free.",
        choices=("auto", "match", "keep", "free"),
    )
    grain: float = _setting(
        0.0, "Give a restored face this part of the grain of its surroundings.", minimum=0.0, maximum=1.0
    )
    sharp_faces: str = _setting(
        "leave",
        "A face that is larger and sharper than the network's output: leave it alone or restore it anyway.",
        choices=("leave", "restore"),
        only="restore",
    )
    precision: str = _setting(
        "auto",
        "Arithmetic of the networks. auto: float16 on a GPU, bfloat16 on a CPU that has it in hardware, else float32.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    ai_label: bool = _setting(True, "Say in the file's XMP that it holds faces made with AI.")
    seed: int = _setting(0, "Seed of everything random: grain, and what an engine draws.", minimum=0, maximum=2**63 - 1)
    engine: str = _setting(
        "auto",
        "What fills the hole. auto: LaMa where its weights are, else cv2, which needs none; the others only when asked "
        "for. face draws what is missing of a face, and nothing else.",
        choices=("auto", "cv2", "lama", "face", "mat", "sd", "sdxl"),
        only="inpaint",
    )
    model: str = _setting(
        "",
        "The engine's weights: for sd and sdxl a folder, a file, or a name on the hub; for the others a file or a "
        "name from `facefix weights list`.",
        only="inpaint",
    )
    prompt: str = _setting("", "What the hole is to show, in words (sd, sdxl).", only="inpaint")
    negative: str = _setting("", "What it must not show (sd, sdxl).", only="inpaint")
    region: str = _setting(
        "whole",
        "What the engine sees: the whole photo at once, or for each hole the box around it, at full resolution.",
        choices=("whole", "masked"),
        only="inpaint",
    )
    context_px: int = _setting(
        32, "Pixels around a hole that its box takes in (--region masked).", minimum=1, maximum=4096, only="inpaint"
    )
    dilate_px: int = _setting(0, "Widen the hole by this many pixels first.", minimum=0, maximum=1024, only="inpaint")
    feather_px: int = _setting(
        4,
        "Fade from the fill to the photo outside the hole, over this many pixels; from there on no bit changes.",
        minimum=0,
        maximum=1024,
        only="inpaint",
    )
    refine: bool = _setting(False, "Sharpen large holes by LaMa's feature refinement, which is slow.", only="inpaint")
    hires: int = _setting(
        1,
        "Enlarge by this factor after the fill and let the model draw the hole anew at that size (sd, sdxl).",
        choices=(1, 2, 4),
        only="inpaint",
    )
    denoise: float = _setting(
        0.35,
        "How far --hires may go from what was there; above 0.5 shapes may change.",
        minimum=0.01,
        maximum=0.7,
        only="inpaint",
    )
    tiled: bool = _setting(False, "Work in tiles, for large holes in little memory (sd, sdxl).", only="inpaint")
    steps: int = _setting(30, "Steps of the sampler (sd, sdxl).", minimum=1, maximum=1000, only="inpaint")
    guidance: float = _setting(
        7.0, "How closely the prompt is followed (sd, sdxl).", minimum=0.0, maximum=50.0, only="inpaint"
    )
    scheduler: str = _setting("auto", "Sampler by name (sd, sdxl), for example ddim or euler.", only="inpaint")
    offload: str = _setting(
        "none",
        "Keep parts of the model off the GPU while they rest (sd, sdxl): whole networks, or layer by layer.",
        choices=("none", "model", "sequential"),
        only="inpaint",
    )
    contrast: str = _setting(
        "none",
        "Show the engine the photo with its contrast evened out; the fill is brought back to the photo's.",
        choices=("none", "equalize", "clahe"),
        only="inpaint",
    )
    post: str = _setting("none", "Smooth the fill afterwards.", choices=("none", "gaussian", "median"), only="inpaint")
    fill_grain: float = _setting(
        1.0, "Give the fill this part of the grain around it.", minimum=0.0, maximum=1.0, only="inpaint"
    )
    outpaint: str = _setting(
        "",
        "Extend the frame by LEFT,TOP,RIGHT,BOTTOM pixels, or per cent of the photo's sides: 0,0,256,0 or 10%,0,10%,0.",
        only="inpaint",
    )
    candidates: int = _setting(
        1, "Make so many different fills (mat, sd, sdxl).", minimum=1, maximum=99, only="inpaint"
    )
    faces: bool = _setting(True, "Restore the faces that the hole touches.", only="inpaint")
    face_spill_px: int = _setting(
        0, "Restore those faces so many pixels beyond the hole, too.", minimum=0, maximum=4096, only="inpaint"
    )
    chroma: float = _setting(
        1.0,
        "How much of the network's colour to take: 0 the photo's own, 1 all of it.",
        minimum=0.0,
        maximum=1.0,
        only="colorize",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), type(field.default), field.metadata["setting"])

    @classmethod
    def settings(cls, command: Command = "restore") -> dict[str, tuple[Any, Setting]]:
        """Each setting that the command uses, its default by name, in order: what doors make their options from."""
        known = {field.name: (field.default, field.metadata["setting"]) for field in dataclasses.fields(cls)}
        if command == "colorize":
            return {name: pair for name, pair in known.items() if pair[1].only == command or name in _COLORIZE}
        return {name: pair for name, pair in known.items() if pair[1].only in (None, command)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """The recipe with these values; a name that is no setting is refused.

        Raises:
            UsageError: an unknown name, or a value that does not fit.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise UsageError(f"{source}: no setting is called {unknown[0]!r}; there are: {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_toml(cls, path: Path) -> Recipe:
        """The recipe that `to_toml` wrote.

        Raises:
            UsageError: the file cannot be read, is no TOML, or holds what is no setting.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:  # no TOML, numbers of 4300 digits, lists in lists
            got = (isinstance(error, OSError) and error.strerror) or error
            problem = f"expected a recipe in TOML, got: {got}; give lines such as strength = 0.8"
            raise UsageError(f"{path}: {problem}") from error
        try:
            return cls.from_mapping(values)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    def values(self, command: Command = "restore") -> dict[str, Any]:
        """The values of the settings that the command uses, by name, in order."""
        return {name: getattr(self, name) for name in self.settings(command)}

    def to_toml(self) -> str:
        """One `name = value` a line, of all fields in their order; `from_toml` reads it back."""
        return _toml(dataclasses.asdict(self), plain=False).replace("\x7f", "\\u007f")

    def digest(self, command: Command = "restore") -> str:
        """64 hex digits that are equal for recipes by which the command does the same, and differ for others."""
        return hashlib.sha256(_toml(self.values(command)).encode()).hexdigest()


def _toml(values: Mapping[str, Any], *, plain: bool = True) -> str:
    """A line for each value; plain: in ASCII, where JSON writes emoji as surrogates, which TOML does not read."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=plain)}\n" for name, value in values.items())


def _check(name: str, value: object, kind: type, setting: Setting) -> None:
    """Raise UsageError where the value is of another type, out of limits, or none of the choices."""
    option = f"--{name.replace('_', '-')}"
    accepts: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepts) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{option}: expected {kind.__name__}, got {value!r}")
    if setting.choices and value not in setting.choices:
        raise UsageError(f"{option}: expected one of {', '.join(map(str, setting.choices))}, got {value!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low = -math.inf if setting.minimum is None else setting.minimum
        high = math.inf if setting.maximum is None else setting.maximum
        if not low <= value <= high:
            raise UsageError(f"{option}: expected {low:g} to {high:g}, got {value}")
