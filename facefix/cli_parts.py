"""What the commands share: options made from the recipe's settings, one-line errors and notes, and reports."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from facefix.errors import PhotoUnwritable, UsageError, shown
from facefix.recipe import Command, Recipe, Setting

EXIT_PHOTO_FAILED, EXIT_FACE_FAILED, EXIT_INTERRUPTED = 1, 4, 130

errors = Console(stderr=True, highlight=False, soft_wrap=True)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
MaskFile = Annotated[
    Path | None,
    typer.Option(help="Picture of the photo's size: only where it is white may anything change.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist already.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 4 where a face could not be restored.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what went wrong.")]


def complain(message: str) -> None:
    """Print what went wrong as one line on stderr."""
    line = " ".join(message.encode("utf-8", "backslashreplace").decode().splitlines())
    errors.print(f"[red]facefix:[/red] {escape(line)}")


def remark(message: str) -> None:
    """Print what the user should know as one line on stderr."""
    errors.print(f"[yellow]note:[/yellow] {escape(message)}")


def make_folder(folder: Path) -> None:
    """Nothing; the folder is there.

    Raises:
        PhotoUnwritable: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PhotoUnwritable(folder, f"{error.strerror}; name a folder that can be written") from error


class Written:
    """The files that a command has written for its photos; none takes the place of another, or of another photo."""

    def __init__(self, sources: Iterable[Path]) -> None:
        self._sources = {self._in_its_folder(source) for source in sources}
        self._source_of: dict[Path, Path] = {}

    def check(self, place: Path, source: Path, option: str = "-o") -> None:
        """Nothing, where `place` neither was written for an earlier photo than `source` nor is another photo.

        Raises:
            PhotoUnwritable: it was or is, so that the photo needs another `option`.
        """
        one_name = self._in_its_folder(place)
        if one_name in self._sources and one_name != self._in_its_folder(source):
            problem = f"{shown(place)} is another of the photos named"
            raise PhotoUnwritable(source, f"{problem}; give another {option}, or do this photo by itself")
        earlier = self._source_of.get(one_name)
        if earlier is not None:
            problem = f"{shown(place)} was just written for {shown(earlier)}"
            raise PhotoUnwritable(source, f"{problem}; do this photo by itself, with another {option}")

    def add(self, place: Path, source: Path) -> None:
        """Nothing; `place` now is the photo's."""
        self._source_of[self._in_its_folder(place)] = source

    @staticmethod
    def _in_its_folder(place: Path) -> Path:
        """The one name of the file, whichever way leads to its folder."""
        return Path(os.path.realpath(place.parent), place.name)


def with_recipe(name: Command) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """What gives a command one option for each setting of its own, in place of its `recipe` parameter.

    Values given on the command line win over those of `--recipe FILE` and `--task`.
    """
    return lambda command: _with_recipe(command, name)


def _with_recipe(command: Callable[..., None], name: Command) -> Callable[..., None]:
    own_settings = Recipe.settings(name)

    def run(*, ctx: typer.Context, recipe_file: Path | None, task: str = "", **values: Any) -> None:
        settings = {name: values.pop(name) for name in own_settings}
        base = _base(recipe_file, task)
        recipe = base or Recipe(**settings)
        if base is not None:
            given = {name for name in settings if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")}
            recipe = dataclasses.replace(recipe, **{name: settings[name] for name in given})
        command(recipe=recipe, **values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    recipe_file = Annotated[
        Path | None, typer.Option("--recipe", help="Take the settings from this TOML file.", rich_help_panel="Recipe")
    ]
    own = inspect.signature(command, eval_str=True).parameters
    parameters = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        *(parameter.replace(kind=keyword) for name, parameter in own.items() if name != "recipe"),
        *(_option(name, *pair) for name, pair in own_settings.items() if pair[1].only == "inpaint"),
        inspect.Parameter("recipe_file", keyword, default=None, annotation=recipe_file),
        *([inspect.Parameter("task", keyword, default="photo", annotation=_TASK)] if name == "restore" else []),
        *(_option(name, *pair) for name, pair in own_settings.items() if pair[1].only != "inpaint"),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


_TASK = Annotated[
    Literal["photo", "selfie"],
    typer.Option(
        help="selfie: settings for one large face, as in GPEN's own demo: the 2048 px network, eight tenths of its "
        "answer, and the photo at twice its size.",
        rich_help_panel="Recipe",
    ),
]


def _base(recipe_file: Path | None, task: str) -> Recipe | None:
    """The recipe that the command line changes, where it names one."""
    if task == "selfie":
        if recipe_file is not None:
            raise UsageError("expected --task selfie or --recipe, got both; leave one out")
        from facefix.trades import selfie

        return selfie()
    return None if recipe_file is None else Recipe.from_toml(recipe_file)


def _option(name: str, default: Any, setting: Setting) -> inspect.Parameter:
    """One keyword parameter that typer turns into `--name`, with the setting's help, choices and limits."""
    kind: Any = type(default)
    limits: dict[str, Any] = {}
    if setting.choices and kind is str:
        kind = Literal.__getitem__(setting.choices)
    elif kind in (int, float):
        limits = {"min": setting.minimum, "max": setting.maximum}
    panel = "Fill" if setting.only == "inpaint" else "Recipe"
    annotation = Annotated[kind, typer.Option(help=setting.help, rich_help_panel=panel, **limits)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_REPORT = re.compile(rb'\s*(\[\s*)?(\{\s*"source"|\]|$)')


def place_of_report(path: Path) -> Path:
    """Where the report of this name goes, links followed: to a free name, or in place of an earlier report.

    Raises:
        UsageError: what is there is none: a photo by mistake, for example, or a device that a rename would replace.
    """
    problem = ""
    try:
        if path.is_dir():
            problem = "a folder"
        elif path.exists() and not path.is_file():
            problem = "a device or pipe"
        elif path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                problem = "" if _REPORT.match(file.read(256)) else "another file"
    except OSError as error:
        problem = f"'{error.strerror}'"
    if problem:
        raise UsageError(f"--report {path}: expected a new name or an earlier report, got {problem}; name another file")
    return Path(os.path.realpath(path))


def write_reports(path: Path, reports: list[dict[str, Any]], *, single: bool) -> None:
    """Write the reports so far, to a temporary name first.

    Raises:
        UsageError: the file cannot be written, or is not a report's.
    """
    named, path = path, place_of_report(path)
    if path.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(entry) + "\n" for entry in reports)
    else:
        text = json.dumps(reports[0] if single else reports, indent=2) + "\n"
    temporary = path.with_name(f".{os.getpid()}.report.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UsageError(f"--report {named}: {error.strerror}; name a file in a folder that can be written") from error
