"""The tab for one photo: drop it, compare, choose its faces, download.

The photo is restored once. What the networks made of each face is kept for its visitor, so that leaving a face, or
taking less of it, only blends anew. The file to download is written by `FaceFix.save`, as the command writes it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr

from facefix import imagefile
from facefix.errors import PhotoRefused, UsageError
from facefix.pipeline import FaceFix
from facefix.recipe import Recipe
from facefix.types import Photo, Result
from facefix.web.compare import compare, comparison, face_entries, shown
from facefix.web.house import NETWORKS, House
from facefix.web.settings import by_name, controls, missing, recipe_of
from facefix.web.words import plainly, remark, trouble

MAIN = ("restorer", "strength", "scale", "colour")
LEFT_OUT = ("face",)
"""Settings that the page has in another form: faces are chosen in the picture."""

_WORK = "restored photo"
_FARTHEST_ENLARGED = 2
_EARLIER = 3
_BLENDING: dict[str, Any] = {"concurrency_id": "blending", "concurrency_limit": 2}
_EMPTY = (
    "<strong>No photo yet.</strong> Drop one on the left, or choose a file. You will see it before and after, with a "
    "box around every face."
)


@dataclass(frozen=True, slots=True)
class Work:
    """A photo in its visitor's hands: what was read, what was made of all its faces, and how it is shown.

    `folder` holds the photo's file and all that is written of it.
    """

    fix: FaceFix
    photo: Photo
    result: Result
    folder: Path
    name: str
    before: Path

    def new_folder(self) -> Path:
        """An empty folder for what is written next; of earlier ones the last few stay, as a browser may be reading."""
        earlier = sorted((each for each in self.folder.iterdir() if each.is_dir()), key=lambda each: each.name)
        for each in earlier[:-_EARLIER]:
            shutil.rmtree(each, ignore_errors=True)
        folder = self.folder / f"{time.monotonic_ns():020d}"
        folder.mkdir()
        return folder


Told: TypeAlias = tuple[Path, dict[str, Any]]
"""The file that was written, and what is shown of it, see `comparison`."""

Answer: TypeAlias = Callable[[Path, dict[str, Any]], tuple[Any, ...]]


def build(house: House) -> None:
    """Place the tab's parts where this is called."""
    with gr.Row(elem_classes="workplace"):
        with gr.Column(scale=1, min_width=300, elem_classes="side"):
            file = gr.File(
                label="Photo", file_types=["image", *sorted(imagefile.SUFFIXES)], height=150, elem_id="restore-photo"
            )
            download = gr.DownloadButton("Download", variant="primary", elem_id="restore-download", visible=False)
            start = gr.Button("Restore again", elem_id="restore-start", visible=False)
            settings = _settings(house)
        with gr.Column(scale=3, min_width=320):
            view = compare(empty=_EMPTY, elem_id="restore-compare")
    deed = _Deed(house, tuple(settings))
    parts = [download, view, start]
    run = gr.on(
        [file.upload, start.click],
        deed.restoring(_for_page),
        [file, *settings.values()],
        parts,
        api_name="restore_on_page",
        api_visibility="private",
        show_progress_on=view,
        **NETWORKS,
    )
    view.choose(
        deed.chosen,
        None,
        parts,
        api_visibility="private",
        trigger_mode="always_last",
        show_progress="hidden",
        **_BLENDING,
    )
    quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    file.clear(deed.forget, None, parts, cancels=run, **quietly)
    _endpoints(deed, file, settings)


def _endpoints(deed: _Deed, file: gr.File, settings: Mapping[str, Any]) -> None:
    """What programs call: the same deeds, with a file and a report for an answer."""
    strengths = gr.JSON(visible=False, label="strengths")
    told = [gr.File(visible=False, label="file"), gr.JSON(visible=False, label="report")]
    restore, reblend = gr.Button(visible=False), gr.Button(visible=False)
    restore.click(
        deed.restoring(_for_programs),
        [file, *settings.values()],
        told,
        api_name="restore",
        api_description="Restore the faces of a photo: gives the new file, and what was done to each face.",
        **NETWORKS,
    )
    reblend.click(
        deed.reblended,
        strengths,
        told,
        api_name="reblend",
        api_description="Blend the photo of the last /restore anew, each face at a strength of its own, by number: "
        '{"1": 0, "2": 0.5} leaves face 1 as it was and takes half of face 2. No network runs.',
        **_BLENDING,
    )


def _settings(house: House) -> dict[str, Any]:
    """The controls of the settings, few at first sight."""
    others = [name for name in Recipe.settings("restore") if name not in (*MAIN, *LEFT_OUT)]
    with gr.Accordion("Settings", open=False, elem_id="restore-settings"):
        placed = controls(house, "restore", MAIN)
        with gr.Accordion("More settings", open=False):
            placed |= controls(house, "restore", others)
        absent = missing(house, ("restorer", "detector", "parser", "upscaler"))
        if absent:
            with gr.Accordion("Networks that are not here", open=False, elem_id="restore-missing"):
                gr.Markdown(f"Run one of these on the server, then start `facefix web` anew:\n\n{absent}")
    return {name: placed[name] for name in Recipe.settings("restore") if name in placed}


class _Deed:
    """What the tab's controls call."""

    def __init__(self, house: House, names: tuple[str, ...]) -> None:
        self.house, self.names = house, names

    def restoring(self, answer: Answer) -> Any:
        """`restore` as the page and programs call it, with each setting."""

        def restore(*given: Any) -> Any:
            photo, *values, request, progress = given
            return answer(*self.restore(photo, dict(zip(self.names, values, strict=True)), request, progress))

        return by_name(restore, ("photo", *self.names), asked=True)

    def restore(
        self, upload: str | None, values: Mapping[str, Any], request: gr.Request, progress: gr.Progress
    ) -> Told:
        """The photo restored: the new file, and what is shown of it."""
        if upload is None:
            raise trouble("expected a photo, got none; drop one first")
        house, visit = self.house, self.house.visit(request)
        recipe = recipe_of(house, "restore", values)
        with plainly():
            progress(0, desc="Reading the photo")
            path = visit.in_hand[_WORK] = house.received(upload, visit)
            photo = house.read(path)
            _check_size(house, photo, recipe)

            def tell(done: int, of: int) -> None:
                visit.check_in_hand(_WORK, path)
                progress((done, of), desc="Restoring", unit="faces")

            progress(0, desc="Waiting for the networks")
            with house.one_at_a_time:
                progress(0, desc="Looking for faces")
                fix = house.facefix(recipe)
                result = fix(photo, progress=tell)
            progress(1, desc="Writing")
            for notice in fix.notices:
                remark(notice)
            work = Work(fix, photo, result, path.parent, path.stem, shown(photo, path.parent, "before"))
            size = (
                photo.raster.nbytes
                + result.photo.raster.nbytes
                + sum(3 * patch.pixels.nbytes for patch in result.patches.values())
            )
            with visit.lock:
                visit.check_in_hand(_WORK, path)
                visit.drop(_WORK)
                house.keep(visit, _WORK, work, size)
                return self._told(work, result, dict.fromkeys(result.patches, recipe.strength))

    def chosen(self, request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        """What the page asks for when faces are chosen in it."""
        return _for_page(*self.reblend(event.strengths, request))

    def reblended(self, strengths: dict[str, float], request: gr.Request) -> tuple[Any, ...]:
        """What programs ask for."""
        return _for_programs(*self.reblend(strengths, request))

    def reblend(self, strengths: dict[str, float], request: gr.Request) -> Told:
        """The visitor's photo blended anew: the new file, and what is shown of it."""
        visit = self.house.visit(request)
        with plainly(), visit.lock:
            work = visit.get(_WORK)
            if not isinstance(work, Work):
                raise trouble("the photo is not kept any more; restore it again")
            wanted = _numbered(strengths)
            result = work.fix.reblend(work.result, wanted)
            known = {number: wanted.get(number, work.fix.recipe.strength) for number in work.result.patches}
            return self._told(work, result, known)

    def forget(self, request: gr.Request) -> tuple[Any, ...]:
        """An empty page; what was kept of the photo is dropped."""
        visit = self.house.visit(request)
        with visit.lock:
            visit.drop(_WORK)
        return gr.DownloadButton(value=None, visible=False), None, gr.Button(visible=False)

    def _told(self, work: Work, result: Result, strengths: Mapping[int, float]) -> Told:
        """Writes the result."""
        folder = work.new_folder()
        written = folder / f"{work.name}.facefix{imagefile.suffix_for(work.photo.meta)}"
        lost = work.fix.save(result, work.photo, written)
        after = shown(result.photo, folder, "after", written)
        faces = face_entries(result, work.photo, strengths)
        value = comparison(
            self.house,
            work.before,
            after,
            result.photo,
            faces=faces,
            summary=_summary(result),
            notes=(*result.report.warnings, *lost),
        )
        return written, value


def _for_page(written: Path, value: dict[str, Any]) -> tuple[Any, ...]:
    """What the page's parts become."""
    download = gr.DownloadButton(f"Download {written.name}", value=str(written), visible=True)
    return download, value, gr.Button(visible=True)


def _for_programs(written: Path, value: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The file, and the report without what only the page needs."""
    return str(written), {key: told for key, told in value.items() if key not in ("before", "after")}


def _check_size(house: House, photo: Photo, recipe: Recipe) -> None:
    """Nothing, where the enlarged photo stays within what a page can carry.

    Raises:
        PhotoRefused: it does not.
    """
    pixels = photo.width * photo.height * recipe.scale**2
    limit = _FARTHEST_ENLARGED * house.max_pixels
    if pixels > limit:
        told = f"expected at most {limit / 1e6:,.0f} megapixels when enlarged, got {pixels / 1e6:,.0f}"
        raise PhotoRefused(photo.meta.source, f"{told}; choose a smaller --scale")


def _numbered(strengths: Mapping[str, float]) -> dict[int, float]:
    """The strengths by face number.

    Raises:
        UsageError: they are not told by numbers, or are none.
    """
    fits = isinstance(strengths, Mapping) and all(
        str(number).isdecimal() and isinstance(each, int | float) and not isinstance(each, bool)
        for number, each in strengths.items()
    )
    if not fits:
        raise UsageError(
            'strengths: expected numbers by face such as {"1": 0, "2": 0.5}, got something else; see above'
        )
    return {int(number): float(each) for number, each in strengths.items()}


def _summary(result: Result) -> str:
    """What was done, in one line."""
    faces, report = result.report.faces, result.report
    size = f"{report.width} × {report.height} px"
    if not faces:
        return f"No face was found. {size}."
    restored = [note for note in faces if note.outcome == "restored"]
    by = ", ".join(sorted({note.restorer for note in restored if note.restorer}))
    what = f"{len(restored)} of {len(faces)} face{'s' if len(faces) > 1 else ''} restored"
    return f"{what}{f' with {by}' if by else ''}. {size}."
