"""The tab for an archive: a folder of the server restored into another, and the board on which its faces are judged.

The page shows what the server and the journal know and keeps nothing of it: it can be closed, opened anew, or opened by
somebody else while a run goes on. Folders are named by their ways below the server's input and output folders.

The board is the file that `facefix review` writes, made anew in the visitor's folder and shown in a frame. Its content
security policy lets no script run but its own; what was decided on it is in the browser, and comes here when it is to
be carried out.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from facefix.errors import FacefixError, shown
from facefix.jobs import review
from facefix.jobs.journal import Journal
from facefix.recipe import Recipe
from facefix.web.archive import Archive
from facefix.web.archive_status import report_of, told_of_deed, told_of_journal, told_of_run
from facefix.web.folders import below, folders, name_of
from facefix.web.house import House, Visit
from facefix.web.settings import by_name, controls, offers, recipe_of
from facefix.web.words import trouble

MAIN = ("restorer", "strength", "scale", "colour")
LEFT_OUT = ("face", "ai_label", "seed")
_FACES, _TICK_S = 1000, 1.0
_NO_FOLDERS = (
    "<p class='empty'><strong>This server has no archive.</strong> Start it with folders of its own, and whole trees "
    "of photos can be restored here: <code>facefix web --input-dir SCANS --output-dir RESTORED</code></p>"
)
_NO_RUN = (
    "<p class='empty'><strong>No run yet.</strong> Choose a folder of photos and start. The tree is mirrored into the "
    "results' folder; originals are never changed. You may close this page meanwhile: the run goes on.</p>"
)
_NO_BOARD = "Every restored face before and after, to accept or take back, when a run has finished some."
_BOARD = "<div class='board'><p class='empty'>" + _NO_BOARD + "</p></div>"
_HERE = Path(__file__)
_CSS = _HERE.with_suffix(".css").read_text(encoding="utf-8")
_READ_DECISIONS = """
(results, told, file) => {
  const data = document.querySelector("#archive-board iframe")?.contentDocument?.getElementById("data");
  if (file || !data) return [results, "", file];
  let memory = {};
  try { memory = JSON.parse(localStorage.getItem(JSON.parse(data.textContent).key) || "{}"); } catch {}
  const decisions = Object.entries(memory).map(([key, {photo, decision}]) => {
    const [id, face] = key.split("#");
    return {id, photo, face: Number(face), decision};
  });
  return [results, JSON.stringify({facefix: "decisions", version: 1, decisions}), null];
}
"""


def build(house: House) -> None:
    """Place the tab's parts where this is called."""
    if house.input_dir is None or house.output_dir is None:
        gr.HTML(_NO_FOLDERS, css_template=_CSS, elem_id="archive-none")
        return
    deed = _Deed(house)
    with gr.Row(elem_classes="workplace"):
        with gr.Column(scale=1, min_width=300, elem_classes="side"):
            source, out = _folders(house)
            again = gr.Checkbox(label="Try photos again that failed before", elem_id="archive-again")
            with gr.Row():
                start = gr.Button("Start", variant="primary", elem_id="archive-start", min_width=120)
                pause = gr.Button("Pause", interactive=False, elem_id="archive-pause", min_width=120)
            settings = _settings(house)
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(_NO_RUN, css_template=_CSS, elem_id="archive-status")
            board = _board_parts(deed, out)
    said = gr.State(None)
    deed.names = tuple(settings)
    shows = [said, status, start, pause]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.Timer(_TICK_S).tick(deed.look, [out, said], shows, queue=False, trigger_mode="once", **private)
    blocks = Context.root_block
    assert blocks is not None
    # past the queue: its stream would end just when the first photo is given, and gradio's page takes no notice of an
    # event whose answer overtakes the end of a stream
    blocks.load(deed.opened, None, [source, out, *settings.values()], queue=False, **private)
    source.input(deed.named, [source, out], out, **private)
    out.input(deed.known, out, [source, board, *settings.values()], **private)
    given = [source, out, again, *settings.values()]
    start.click(deed.starting(lambda: deed.look(deed.doing, None)), given, shows, **private)
    pause.click(deed.pause, out, shows, **private)
    _endpoints(deed, given)


def _folders(house: House) -> tuple[gr.Dropdown, gr.Dropdown]:
    """Where the folders are chosen: the photos' and the results'."""
    common: dict[str, Any] = {"value": None, "allow_custom_value": True}
    source = gr.Dropdown(
        [".", *folders(house.input_dir)],
        label="Photos",
        info="A folder below the server's input folder, with all that lies in it.",
        elem_id="archive-source",
        **common,
    )
    out = gr.Dropdown(
        folders(house.output_dir),
        label="Results",
        info="A folder below the server's output folder, made where it is not there.",
        elem_id="archive-out",
        **common,
    )
    return source, out


def _endpoints(deed: _Deed, given: list[Any]) -> None:
    """What programs call: the same deeds, with a report for an answer."""
    results, decisions = gr.Textbox(visible=False, label="results"), gr.Textbox(visible=False, label="decisions")
    told = gr.JSON(visible=False, label="report")
    start, pause, status, apply = (gr.Button(visible=False) for _ in range(4))
    start.click(
        deed.starting(deed.status),
        given,
        told,
        api_name="archive_start",
        api_description="Begin the restoration of a folder of the server, or go on with it: gives how the run stands.",
    )
    pause.click(
        deed.paused,
        None,
        told,
        api_name="archive_pause",
        api_description="Finish the photos in hand and begin no other: gives how the run stands.",
    )
    status.click(
        deed.status, None, told, api_name="archive_status", api_description="How the server's run stands, or null."
    )
    apply.click(
        deed.applied,
        [results, decisions],
        told,
        api_name="archive_apply",
        api_description="Carry out a board's decisions on a folder of results: the JSON text that the board exports.",
    )


def _board_parts(deed: _Deed, out: gr.Dropdown) -> gr.HTML:
    """The board, and what carries out what was decided on it."""
    with gr.Row():
        open_board = gr.Button("Look through the faces", elem_id="archive-look", min_width=160)
        carry_out = gr.Button("Carry out the decisions", elem_id="archive-apply", min_width=160)
        take_back = gr.Button("Undo what was carried out", elem_id="archive-undo", min_width=160, interactive=False)
    told = gr.HTML("", css_template=_CSS, elem_id="archive-told", visible=False)
    board = gr.HTML(
        None,
        html_template=_BOARD,
        css_template=_CSS,
        js_on_load=_HERE.with_suffix(".js").read_text(encoding="utf-8"),
        elem_id="archive-board",
    )
    with gr.Accordion("Decisions from a file", open=False):
        file = gr.File(
            label="The decisions.json that a board exported",
            file_types=[".json"],
            height=110,
            elem_id="archive-decisions",
        )
    decisions = gr.Textbox(visible=False, label="decisions")
    shows = [told, board, take_back, file]
    common: dict[str, Any] = {"show_progress_on": board, "concurrency_id": "boards", "concurrency_limit": 2}
    open_board.click(deed.board, out, [told, board, take_back], api_visibility="private", **common)
    carry_out.click(
        deed.carry_out,
        [out, decisions, file],
        shows,
        js=_READ_DECISIONS,
        api_visibility="private",
        **common,
    )
    take_back.click(deed.take_back, out, shows, api_visibility="private", **common)
    return board


def _settings(house: House) -> dict[str, Any]:
    """The controls of the settings, few at first sight."""
    names = [name for name in Recipe.settings("restore") if name not in LEFT_OUT]
    with gr.Accordion("Settings", open=False, elem_id="archive-settings"), gr.Group(elem_classes="archive-settings"):
        placed = controls(house, "restore", MAIN)
        with gr.Accordion("More settings", open=False):
            placed |= controls(house, "restore", [name for name in names if name not in MAIN])
    for name, control in placed.items():
        control.elem_id = f"archive-{name}"
    return {name: placed[name] for name in names}


class _Deed:
    """What the tab's controls call."""

    names: tuple[str, ...] = ()

    def __init__(self, house: House) -> None:
        self.house, self.archive = house, Archive(house)

    def opened(self) -> list[Any]:
        """The folders that there are now, and those and the settings of the run that the server has."""
        run, known = self.archive.run, list[Any]([gr.skip()] * len(self.names))
        lists = [[".", *folders(self.house.input_dir)], folders(self.house.output_dir)]
        if run is None:
            return [gr.Dropdown(choices=[(name, name) for name in listed]) for listed in lists] + known
        values = [name_of(run.source, self.archive.input_dir), name_of(run.out, self.archive.output_dir)]
        both = [
            gr.Dropdown(choices=[(name, name) for name in listed], value=value)
            for listed, value in zip(lists, values, strict=True)
        ]
        return both + self._values(run.recipe)

    def named(self, source: str | None, out: str | None) -> Any:
        """The name of the results' folder: the photos', where none was given yet."""
        return Path(source).name or gr.skip() if source and not out else gr.skip()

    def known(self, out: str | None) -> list[Any]:
        """What a results' folder was made from: its photos and settings, so that the same run can go on."""
        nothing = [gr.skip(), None, *[gr.skip()] * len(self.names)]
        with self._plainly():
            found = self.archive.began_with(self.archive.results(out or "")) if out else None
        if found is None or not found[0].is_relative_to(self.archive.input_dir):
            return nothing
        return [name_of(found[0], self.archive.input_dir), None, *self._values(found[1])]

    def starting(self, answer: Callable[[], Any]) -> Any:
        """`start` as the page and programs call it, with each setting."""

        def start(*given: Any) -> Any:
            source, out, again, *values = given
            self.start(source, out, again, dict(zip(self.names, values, strict=True)))
            return answer()

        return by_name(start, ("photos", "results", "retry_failed", *self.names))

    def start(self, source: str | None, out: str | None, again: bool, values: Mapping[str, Any]) -> None:
        """Nothing; the run is begun or gone on with."""
        if not source:
            raise trouble("expected a folder of photos, got none; choose one")
        if not out:
            raise trouble("expected a folder for the results, got none; name one")
        recipe = recipe_of(self.house, "restore", values)
        with self._plainly():
            self.archive.start(source, out, recipe, retry_failed=bool(again))

    def pause(self, out: str | None) -> list[Any]:
        """The run asked to pause; how it stands."""
        self.archive.pause()
        return self.look(out, None)

    def paused(self) -> dict[str, Any] | None:
        """The run asked to pause; how it stands, for programs."""
        self.archive.pause()
        return self.status()

    def status(self) -> dict[str, Any] | None:
        """How the run stands, for programs."""
        run = self.archive.run
        return None if run is None else report_of(run.source, run.out, run.standing(), self.archive)

    @property
    def doing(self) -> str | None:
        """The name of the run's results."""
        run = self.archive.run
        return None if run is None else name_of(run.out, self.archive.output_dir)

    def applied(self, results: str | None, decisions: str | None, request: gr.Request) -> dict[str, Any]:
        """What became of the decisions, for programs."""
        with self._plainly():
            line, _ = self._carried(results, decisions, None, self.house.visit(request))
        return {"told": line}

    def look(self, out: str | None, said: Any) -> list[Any]:
        """How the run stands, or what the journal says; nothing where that is what the page shows already."""
        run = self.archive.run
        standing = None if run is None else run.standing()
        start, pause = "Start", bool(standing and standing.state in ("starting", "running"))
        alive = bool(standing and standing.alive)
        try:
            chosen = self.archive.results(out) if out else None
            if run is not None and standing is not None and (alive or chosen in (None, run.out)):
                text = told_of_run(run.source, run.out, standing, self.archive)
                start = "Go on" if standing.state in ("paused", "broken") else "Run again"
            else:
                told = None if chosen is None else self.archive.journal_says(chosen)
                text = _NO_RUN if told is None or chosen is None else told_of_journal(chosen, *told, self.archive)
                if told is not None:
                    start = "Go on" if told[0]["queued"] or told[0]["running"] else "Run again"
        except FacefixError as error:
            text = f"<p class='trouble'>{html.escape(self._said(error))}</p>"
        now = [text, start, alive, pause]
        if now == said:
            return [gr.skip()] * 4
        return [now, text, gr.Button(start, interactive=not alive), gr.Button(interactive=pause)]

    def board(self, out: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        """The board, written anew."""
        with self._plainly():
            results = self._results(out)
            value = self._written(results, self.house.visit(request), progress)
        return [gr.HTML(visible=False), value, gr.Button(interactive=self.archive.can_take_back(results))]

    def carry_out(
        self,
        results: str | None,
        decisions: str | None,
        file: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """What became of the decisions, and the board as it is then."""
        visit = self.house.visit(request)
        with self._plainly():
            line, spent = self._carried(results, decisions, file, visit)
            out = self._results(results)
            value = self._written(out, visit, progress) | {"spent": spent}
        return self._after(line, value, out)

    def _carried(
        self, results: str | None, decisions: str | None, file: str | None, visit: Visit
    ) -> tuple[str, list[str]]:
        """What became of decisions that came as text or as a file."""
        out = self._results(results)
        if file is None and not decisions:
            raise trouble("expected decisions, got none; look through the faces first, or give a file of them")
        if file is None:
            path = visit.new_folder() / "decisions"
            path.write_text(decisions or "", encoding="utf-8")
        else:
            path = self.house.received(file, visit)
        told = review.read_decisions(path)
        if not told:
            raise trouble("expected decisions, got none; accept or reject a face on the board first")
        return self.archive.carry_out(out, told)

    def take_back(self, results: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        """What became of undoing the decisions that were carried out last, and the board as it is then."""
        with self._plainly():
            out = self._results(results)
            line = self.archive.take_back(out)
            value = self._written(out, self.house.visit(request), progress)
        return self._after(line, value, out)

    def _after(self, line: str, value: dict[str, Any], out: Path) -> list[Any]:
        told = gr.HTML(told_of_deed(line, out), visible=True)
        return [told, value, gr.Button(interactive=self.archive.can_take_back(out)), None]

    def _results(self, out: str | None) -> Path:
        if not out:
            raise trouble("expected a folder of results, got none; choose one")
        return self.archive.results(out)

    def _written(self, out: Path, visit: Visit, progress: gr.Progress) -> dict[str, Any]:
        """What the frame shows: a board, or several."""
        with Journal.open(out, write=False) as journal:
            paths = review.write_board(
                journal,
                visit.new_folder() / "board.html",
                faces=_FACES,
                progress=lambda done, of: progress((done, of), desc="Writing the board", unit="faces"),
            )
        for path in paths:  # where the server keeps its folders is nobody's business
            text = path.read_text(encoding="utf-8")
            for folder in (self.archive.input_dir, self.archive.output_dir):
                text = text.replace(json.dumps(shown(folder / "_"))[1:-2], "")
            path.write_text(text, encoding="utf-8", newline="\n")
        return {"parts": [self.house.url(path) for path in paths]}

    def _values(self, recipe: Recipe) -> list[Any]:
        """The recipe's values for the settings' controls; one that cannot be chosen here is left as it is."""
        offered, values = offers(self.house, "restore"), recipe.values()
        return [
            values[name] if name not in offered or values[name] in offered[name] else gr.skip() for name in self.names
        ]

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except FacefixError as error:
            raise trouble(self._said(error)) from None

    def _said(self, error: FacefixError) -> str:
        """The error's line, with folders as the page calls them."""
        line = " ".join(str(error).splitlines())
        for folder in (self.house.input_dir, self.house.output_dir):
            line = line if folder is None else below(folder, line)
        return re.sub(rf"{re.escape(shown(self.house.root))}\S*{re.escape(os.sep)}", "", line)
