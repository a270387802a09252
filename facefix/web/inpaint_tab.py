"""The tab for a hole: paint it or send a picture of it, have it filled, and the faces that it touches restored.

What is painted on is a shrunk copy; the hole is brought back to the photo's own pixels, and the photo itself is always
read from the file that was sent: depth, profile and metadata stay, and the file to download is the one that
`facefix inpaint PHOTO MASK` writes with the mask that is offered beside it.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix import imagefile, inpaint
from facefix.errors import PhotoRefused
from facefix.inpaint import compose
from facefix.inpainting import Inpainter
from facefix.recipe import Recipe
from facefix.types import Photo, Result
from facefix.web.compare import compare, comparison, shown
from facefix.web.house import NETWORKS, House
from facefix.web.painting import hole_of, shrunk
from facefix.web.settings import by_name, controls, missing, offers, recipe_of
from facefix.web.words import plainly, remark, trouble

MAIN = ("engine", "region", "dilate_px", "feather_px", "faces")
LEFT_OUT = ("face",)
_WORK = "inpainted photo"
_FARTHEST_GROWN, _MOST_CANDIDATES = 2, 9
_PER_CALL = frozenset(
    {"strength", "face", "min_face", "feather", "colour", "grain", "ai_label", "seed", "region", "context_px"}
    | {"dilate_px", "feather_px", "contrast", "post", "fill_grain", "outpaint", "candidates", "face_spill_px"}
)
"""Settings that load nothing: another value of theirs needs no other networks."""
_EMPTY = (
    "<strong>Nothing filled yet.</strong> Choose a photo, paint over what is to go, and press Fill. You will see it "
    "before and after."
)
_PAINT = (
    "Paint over what is to go. By keyboard, or to the pixel: send a mask instead, a picture of the photo's size that "
    "is white where the hole is. Without either the photo's transparent pixels are the hole."
)


@dataclass(frozen=True, slots=True)
class Work:
    """What was made of a photo: a value for the page and the file of each fill, and the file of the mask."""

    folder: Path
    shown: tuple[dict[str, Any], ...]
    written: tuple[Path, ...]
    mask: Path | None


def build(house: House) -> None:
    """Place the tab's parts where this is called."""
    with gr.Row(elem_classes="workplace"):
        with gr.Column(scale=1, min_width=300, elem_classes="side"):
            types = ["image", *sorted(imagefile.SUFFIXES)]
            file = gr.File(label="Photo", file_types=types, height=150, elem_id="inpaint-photo")
            mask = gr.File(label="Mask (optional)", file_types=types, height=150, elem_id="inpaint-mask")
            choices = _choices(house)
            settings = _settings(house, choices)
        with gr.Column(scale=3, min_width=320):
            hint = gr.Markdown(_PAINT, visible=False, elem_id="inpaint-hint")
            editor = _editor()
            with gr.Row():
                fill = gr.Button("Fill", variant="primary", elem_id="inpaint-start", interactive=False)
                download = gr.DownloadButton("Download", elem_id="inpaint-download", interactive=False)
                keep_mask = gr.DownloadButton("Download the mask", elem_id="inpaint-keep-mask", visible=False)
            which = gr.Radio(visible=False, label="Fills", elem_id="inpaint-which", interactive=True)
            view = compare(empty=_EMPTY, elem_id="inpaint-compare")
    deed = _Deed(house, tuple(settings), choices)
    results = [download, keep_mask, which, view]
    private: dict[str, Any] = {"api_visibility": "private"}
    opening = gr.on(
        [file.upload, editor.clear],
        deed.opened,
        file,
        [editor, hint, fill],
        show_progress="full",
        show_progress_on=file,
        **private,
    )
    which.input(deed.chosen, which, [download, view], show_progress="hidden", **private)
    given = [file, editor, mask, *settings.values()]
    run = fill.click(deed.filling(_for_page), given, results, show_progress_on=view, **NETWORKS, **private)
    emptied = [editor, hint, fill, *results]
    file.clear(deed.forget, None, emptied, cancels=[opening, run], show_progress="hidden", queue=False, **private)
    _endpoint(deed, given)


def _endpoint(deed: _Deed, given: list[Any]) -> None:
    """What programs call: the same deed, with files and reports for an answer."""
    called = gr.Button(visible=False)
    called.click(
        deed.filling(_for_programs),
        given,
        [gr.File(visible=False, file_count="multiple", label="files"), gr.JSON(visible=False, label="reports")],
        api_name="inpaint",
        api_description="Fill a hole in a photo and restore the faces that it touches. `painted` is None for programs; "
        "`mask` is a picture of the photo's size, white where the hole is, or None for the photo's transparent pixels. "
        "Gives the new files, one for each candidate, and what was done.",
        **NETWORKS,
    )


def _editor() -> gr.ImageEditor:
    """What the hole is painted in."""
    return gr.ImageEditor(
        label="Paint the hole",
        sources=(),
        transforms=(),
        layers=gr.LayerOptions(disabled=True),
        brush=gr.Brush(default_size=24, colors=["#e6007e"], color_mode="fixed"),
        eraser=gr.Eraser(default_size=24),
        buttons=["fullscreen"],
        type="numpy",
        format="png",
        height="min(560px, 115vw)",
        visible=False,
        elem_id="inpaint-editor",
    )


def _choices(house: House) -> dict[str, list[str]]:
    """What can be chosen: engines whose weights are here, and models that lie in the store."""
    found, drawing = offers(house, "inpaint"), drawing_models(house)
    kinds = {kind for kind, _ in drawing.values()}
    return {
        "engine": [*found["engine"], *(kind for kind in ("sd", "sdxl") if kind in kinds)],
        "model": [*found["model"], *drawing],
    }


def drawing_models(house: House) -> dict[str, tuple[str, Path]]:
    """By name, the folders of the store that hold a Stable Diffusion model: whether sd or sdxl, and where."""
    models: dict[str, tuple[str, Path]] = {}
    for index in (found for folder in house.store.folders for found in sorted(folder.glob("*/model_index.json"))):
        try:
            told = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        kind = "sdxl" if "XL" in str(told.get("_class_name") if isinstance(told, dict) else "") else "sd"
        models.setdefault(index.parent.name, (kind, index.parent))
    return models


def _settings(house: House, choices: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The controls of the settings that some engine here uses, few at first sight."""
    engines = [kind for kind in inpaint.KINDS.values() if kind.name in choices["engine"]]
    used = frozenset[str]().union(*(kind.uses for kind in engines))
    particular = frozenset[str]().union(*(kind.uses for kind in inpaint.KINDS.values()))
    useless = (particular - used) | ({"upscaler"} if "hires" not in used else set())
    names = [name for name in Recipe.settings("inpaint") if name not in (*LEFT_OUT, *useless)]
    absent = missing(house, ("inpainter", "face-inpainter"))
    if not {"sd", "sdxl"} & set(choices["engine"]):
        absent += "\n- **sd**, **sdxl** — put the folder of a Stable Diffusion inpainting model (with its "
        absent += "`model_index.json`) into a folder that `facefix weights list` names"
    with gr.Accordion("Settings", open=False, elem_id="inpaint-settings"):
        placed = controls(house, "inpaint", MAIN, choices=choices)
        with gr.Accordion("More settings", open=False):
            placed |= controls(house, "inpaint", [name for name in names if name not in MAIN], choices=choices)
        with gr.Accordion("Engines that are not here", open=False, elem_id="inpaint-missing"):
            gr.Markdown(f"Do one of these on the server, then start `facefix web` anew:\n\n{absent}")
    return {name: placed[name] for name in names}


class _Deed:
    """What the tab's controls call."""

    def __init__(self, house: House, names: tuple[str, ...], choices: Mapping[str, Sequence[str]]) -> None:
        self.house, self.names, self.choices = house, names, choices
        self._loaded: tuple[dict[str, Any], Inpainter] | None = None
        self._loading = threading.Lock()

    def opened(self, upload: str | None, request: gr.Request) -> tuple[Any, ...]:
        """The editor with a shrunk copy of the photo to paint on."""
        if upload is None:
            return gr.ImageEditor(value=None, visible=False), gr.Markdown(visible=False), gr.Button(interactive=False)
        visit = self.house.visit(request)
        with plainly():
            path = self.house.received(upload, visit)
            photo = self.house.read(path)
        copy = path.parent / "canvas.png"
        Image.fromarray(shrunk(photo)).save(copy, compress_level=1)
        return (
            gr.ImageEditor(value={"background": str(copy), "layers": [], "composite": None}, visible=True),
            gr.Markdown(visible=True),
            gr.Button(interactive=True),
        )

    def forget(self, request: gr.Request) -> tuple[Any, ...]:
        """An empty page; what was made of the photo is dropped."""
        visit = self.house.visit(request)
        with visit.lock:
            visit.drop(_WORK)
        return (
            gr.ImageEditor(value=None, visible=False),
            gr.Markdown(visible=False),
            gr.Button(interactive=False),
            gr.DownloadButton("Download", value=None, interactive=False),
            gr.DownloadButton(value=None, visible=False),
            gr.Radio(visible=False),
            None,
        )

    def filling(self, answer: Callable[[Work], tuple[Any, ...]]) -> Any:
        """`fill` as the page and programs call it, with each setting."""

        def fill(*given: Any) -> Any:
            photo, painted, mask, *values, request, progress = given
            told = dict(zip(self.names, values, strict=True))
            return answer(self.fill(photo, painted, mask, told, request, progress))

        return by_name(fill, ("photo", "painted", "mask", *self.names), asked=True)

    def fill(
        self,
        upload: str | None,
        painted: Mapping[str, Any] | None,
        mask_upload: str | None,
        values: Mapping[str, Any],
        request: gr.Request,
        progress: gr.Progress,
    ) -> Work:
        """The photo with its hole filled: its files, and what is shown."""
        if upload is None:
            raise trouble("expected a photo, got none; choose one first")
        visit = self.house.visit(request)
        recipe = self._recipe(values)
        with plainly():
            progress(0, desc="Reading the photo")
            path = visit.in_hand[_WORK] = self.house.received(upload, visit)
            photo = self.house.read(path)
            _check_size(self.house, photo, recipe)
            hole = hole_of(painted, photo)
            mask: Photo | NDArray[np.bool_] | None = hole
            if mask_upload is not None:
                mask = self.house.read(self.house.received(mask_upload, visit))
            progress(0, desc="Waiting for the networks")
            with self.house.one_at_a_time:
                progress(0, desc="Loading the engine")
                painter = self._painter(recipe)
                told = _told_by(progress, lambda: visit.check_in_hand(_WORK, path))
                made = list(painter.candidates(photo, mask, progress=told))
            progress(1, desc="Writing")
            for notice in painter.notices:
                remark(notice)
            work = self._written(painter, path, photo, made, hole if mask_upload is None else None)
        with plainly(), visit.lock:
            visit.check_in_hand(_WORK, path)
            visit.drop(_WORK)
            self.house.keep(visit, _WORK, work, 0)
        return work

    def chosen(self, number: int | None, request: gr.Request) -> tuple[Any, ...]:
        """One of several fills: what to download, and what is shown."""
        work = self.house.visit(request).get(_WORK)
        if not isinstance(work, Work) or number is None or number not in range(len(work.shown)):
            raise trouble("the fills are not kept any more; press Fill again")
        return _download(work, number), work.shown[number]

    def _recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of the controls' values, with a model's name made its place."""
        recipe = recipe_of(self.house, "inpaint", values, choices=self.choices)
        if recipe.candidates > _MOST_CANDIDATES:
            raise trouble(f"expected at most {_MOST_CANDIDATES} candidates on the page, got {recipe.candidates}")
        models = drawing_models(self.house)
        if recipe.engine in ("sd", "sdxl") and not recipe.model:
            fitting = [name for name, (kind, _) in models.items() if kind == recipe.engine]
            recipe = dataclasses.replace(recipe, model=fitting[0] if fitting else "")
        if recipe.model in models:
            recipe = dataclasses.replace(recipe, model=str(models[recipe.model][1]))
        return recipe

    def _painter(self, recipe: Recipe) -> Inpainter:
        """The recipe's Inpainter; that of the last call is shared where it loaded the same."""
        wanted = {name: value for name, value in recipe.values("inpaint").items() if name not in _PER_CALL}
        with self._loading:
            if self._loaded is not None and self._loaded[0] == wanted:
                inpaint.choose(recipe, self.house.store)
                return self._loaded[1].with_recipe(recipe)
            self._loaded = None
            painter = Inpainter.load(recipe, device=self.house.device, store=self.house.store)
            self._loaded = wanted, painter
            return painter

    def _written(
        self, painter: Inpainter, path: Path, photo: Photo, made: Sequence[Result], hole: NDArray[np.bool_] | None
    ) -> Work:
        """The files of the fills beside the photo's, and what the page is told of each."""
        folder, suffix = path.parent, imagefile.suffix_for(photo.meta)
        by = compose.margins(painter.recipe.outpaint, photo.width, photo.height)
        wide = photo
        if any(by):
            alpha = None if photo.alpha is None else compose.extended(photo.alpha, by)
            wide = dataclasses.replace(photo, raster=compose.extended(photo.raster, by), alpha=alpha)
        before = shown(wide, folder, "before")
        values, files = [], []
        for number, result in enumerate(made, 1):
            which = f".{number}" if len(made) > 1 else ""
            target = folder / f"{path.stem}.facefix{which}{suffix}"
            lost = painter.save(result, photo, target)
            after = shown(result.photo, folder, f"after{which}", target)
            value = comparison(
                self.house,
                before,
                after,
                result.photo,
                summary=_summary(result),
                notes=(*_left(result), *result.report.warnings, *lost),
            )
            values.append(value)
            files.append(target)
        mask_file = None
        if hole is not None:
            mask_file = folder / f"{path.stem}.mask.png"
            Image.fromarray(hole.astype(np.uint8) * 255).save(mask_file)
        return Work(folder, tuple(values), tuple(files), mask_file)


def _told_by(progress: gr.Progress, check: Callable[[], None]) -> Any:
    titles = {"fill": "Filling", "faces": "Restoring faces", "hires": "Drawing anew"}

    def tell(name: str, done: int, of: int) -> None:
        check()
        word, _, more = name.partition(" ")
        progress((done, of), desc=f"{titles.get(word, word)} {more}".strip(), unit="steps")

    return tell


def _for_page(work: Work) -> tuple[Any, ...]:
    names = [(f"Fill {number}", number - 1) for number in range(1, len(work.shown) + 1)]
    return (
        _download(work, 0),
        gr.DownloadButton(value=None if work.mask is None else str(work.mask), visible=work.mask is not None),
        gr.Radio(choices=names, value=0, visible=len(names) > 1),
        work.shown[0],
    )


def _for_programs(work: Work) -> tuple[Any, ...]:
    return [str(path) for path in work.written], list(work.shown)


def _download(work: Work, number: int) -> gr.DownloadButton:
    path = work.written[number]
    return gr.DownloadButton(f"Download {path.name}", value=str(path), interactive=True)


def _check_size(house: House, photo: Photo, recipe: Recipe) -> None:
    """Nothing, where the grown photo stays within what a page can carry.

    Raises:
        PhotoRefused: it does not.
    """
    by = compose.margins(recipe.outpaint, photo.width, photo.height)
    pixels = (photo.width + by.left + by.right) * (photo.height + by.top + by.bottom) * recipe.hires**2
    limit = _FARTHEST_GROWN * house.max_pixels
    if pixels > limit:
        told = f"expected at most {limit / 1e6:,.0f} megapixels when it has grown, got {pixels / 1e6:,.0f}"
        raise PhotoRefused(photo.meta.source, f"{told}; choose a smaller --outpaint or --hires")


def _summary(result: Result) -> str:
    """What was done, in one line."""
    fill, report = result.report.fill, result.report
    seed = "" if fill["seed"] is None else f", seed {fill['seed']}"
    parts = [f"{fill['hole_px']:,} px filled with {fill['engine']}{seed}"]
    restored = [note for note in report.faces if note.outcome == "restored"]
    if report.faces:
        by = ", ".join(sorted({note.restorer for note in restored if note.restorer}))
        parts.append(f"{len(restored)} of {len(report.faces)} faces restored{f' with {by}' if by else ''}")
    return f"{'; '.join(parts)}. {report.width} × {report.height} px."


def _left(result: Result) -> list[str]:
    """A line for each face that was not restored."""
    notes = enumerate(result.report.faces, 1)
    return [f"Face {number} {note.outcome}: {note.reason}" for number, note in notes if note.outcome != "restored"]
