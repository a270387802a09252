"""Before and after in the browser: one over the other at full resolution, with a line to move, and faces to choose.

A component of its own, made of plain HTML controls: the line is a range input, faces are buttons over the picture and
check boxes and range inputs in the list below, so that everything can be reached by keyboard and read aloud. The
script keeps the page's state; the server is told each face's strength, and answers with a new picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from facefix import imagefile
from facefix.types import FaceNote, Photo, Result
from facefix.web.house import House
from facefix.web.words import in_page

_SHOWN_AS_IT_IS = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_LONGEST_JPEG_SIDE = 65_000
_HERE = Path(__file__)


def compare(*, empty: str = "", **options: Any) -> gr.HTML:
    """A component, placed where this is called, that shows what `comparison` describes; it starts empty.

    Its event `choose` carries `strengths`, by face number. It is made here and not by a class of its own because
    Gradio writes a file beside the module of every class of components.

    Args:
        empty: what stands there as long as it shows nothing, as HTML.
        options: further ones of `gradio.HTML`.
    """
    return gr.HTML(
        html_template=f"<div class='compare'><p class='empty'>{empty}</p></div>",
        js_on_load=_HERE.with_suffix(".js").read_text(encoding="utf-8"),
        apply_default_css=False,
        **options,
    )


def comparison(
    house: House,
    before: Path,
    after: Path,
    result: Photo,
    *,
    faces: list[dict[str, Any]] | None = None,
    summary: str = "",
    notes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The value of a `compare`.

    Args:
        house: whose folder holds the two files.
        before: a picture that browsers show.
        after: the same of the result; of the same proportions.
        result: the result, for its size.
        faces: as `face_entries` gives them; none to show no list.
        summary: a line on what was done.
        notes: further lines that should be known.
    """
    return {
        "before": house.url(before),
        "after": house.url(after),
        "width": result.width,
        "height": result.height,
        "faces": faces or [],
        "summary": summary,
        "notes": [in_page(note) for note in notes],
    }


def face_entries(result: Result, photo: Photo, strengths: Mapping[int, float]) -> list[dict[str, Any]]:
    """Each face for the page: where it is, in parts of the photo's sides, what became of it, and how much is taken.

    Args:
        result: of all faces, each at its own strength.
        photo: what was read; boxes are in its pixels.
        strengths: by number, of the faces that were restored; others cannot be chosen.
    """
    return [_entry(number, note, photo, strengths.get(number)) for number, note in enumerate(result.report.faces, 1)]


def _entry(number: int, note: FaceNote, photo: Photo, strength: float | None) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(each) for each in note.face.box_xyxy)
    sides = (photo.width, photo.height) * 2
    # a box is about pixels' centres
    box = [round(min(max((each + 0.5) / side, 0), 1), 5) for each, side in zip((x0, y0, x1, y1), sides, strict=True)]
    return {
        "number": number,
        "box": box,
        "width_px": round(x1 - x0),
        "outcome": note.outcome,
        "reason": in_page(note.reason),
        "restorer": note.restorer,
        "size": note.size,
        "strength": strength,
    }


def shown(photo: Photo, folder: Path, name: str, written: Path | None = None) -> Path:
    """A file of the whole photo that every browser shows: the one that was written of it where that will do.

    Otherwise a JPEG of highest quality, or a PNG where the photo is see-through, in 8 bits with the photo's profile.

    Args:
        photo: what to show.
        folder: where to write.
        name: the new file's, without suffix.
        written: the photo's own file, as facefix wrote it.
    """
    if written is not None and written.suffix.lower() in _SHOWN_AS_IT_IS:
        return written
    picture = imagefile.to_pil(photo)
    if picture.mode == "I;16":
        picture = Image.fromarray((photo.raster[:, :, 0] >> 8).astype(np.uint8))
    if photo.alpha is not None or max(picture.size) > _LONGEST_JPEG_SIDE:
        path = folder / f"{name}.png"
        picture.save(path, compress_level=1, icc_profile=photo.meta.icc)
    else:
        path = folder / f"{name}.jpg"
        picture.save(path, quality=95, subsampling=0, icc_profile=photo.meta.icc)
    return path
