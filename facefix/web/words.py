"""facefix's lines as the page says them: settings by the names they have there, and errors as one line."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from facefix.errors import FacefixError, PhotoError, shown
from facefix.recipe import Recipe

_SETTINGS = frozenset(field.name for field in dataclasses.fields(Recipe))


def title_of(setting: str) -> str:
    """What a setting is called on the page: 'min_face' is 'Min face'."""
    return setting.replace("_", " ").capitalize()


def in_page(line: str) -> str:
    """The line with settings called as on the page: --sharp-faces is “Sharp faces”; other options stay as they are."""

    def called(option: re.Match[str]) -> str:
        name = option[1].replace("-", "_")
        return f"“{title_of(name)}”" if name in _SETTINGS else option[0]

    return re.sub(r"--([a-z][a-z-]*)", called, line)


def line_of(error: FacefixError) -> str:
    """What went wrong, in one line; of a file only its name is told, not where the server keeps it."""
    text = str(error)
    if isinstance(error, PhotoError):
        named = "" if error.path is None else f"{shown(error.path.parent / error.path.name).rpartition('/')[2]}: "
        text = named + error.problem
    return in_page(" ".join(text.splitlines()))


@contextmanager
def plainly() -> Iterator[None]:
    """Turns facefix's errors into what the page shows as one line; others are bugs and stay what they are."""
    try:
        yield
    except FacefixError as error:
        raise trouble(line_of(error)) from None


def trouble(line: str, title: str = "That did not work") -> gr.Error:
    """What to raise to have a line shown in the page, as text, whatever is in it."""
    return gr.Error(html.escape(line, quote=False), title=title, duration=None, print_exception=False)


def remark(line: str) -> None:
    """Shows a line that should be known, as text."""
    gr.Warning(html.escape(line, quote=False), title="Note", duration=15)
