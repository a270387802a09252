"""`facefix weights`: list, path, fetch, verify and accept, over the store."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from facefix.errors import WeightsInvalid
from facefix.types import Weight
from facefix.weights import Store

app = typer.Typer(no_args_is_help=True, help="Weight files: what there is, where it lies, how to get it.")

Name = Annotated[str, typer.Argument(help="Name as in `facefix weights list`.", show_default=False)]
Names = Annotated[list[str], typer.Argument(help="Names as in `facefix weights list`.", show_default=False)]


@app.command("list")
def list_weights() -> None:
    """Show every file that facefix knows, its licence, and whether it is here."""
    store = Store.default()
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("name", "kind", "px", "MB", "here", "consent", "licence"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("px", "MB") else "left")
    present = {weight.name: path for weight, path in store.present()}
    for weight in store.catalogue:
        path = present.get(weight.name)
        size = path.stat().st_size if path else weight.bytes or weight.tensor_bytes
        table.add_row(
            weight.name,
            weight.kind,
            str(weight.size or ""),
            f"{size / 1e6:.3g}" if size else "",
            "yes" if path else "",
            "" if weight.commercial else "given" if store.accepted(weight) else "asked",
            weight.licence.partition(";")[0],
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"Downloads go to {store.folders[0]}. Consent is asked for where use is non-commercial only.")


@app.command()
def path(name: Name) -> None:
    """Print where a file lies."""
    typer.echo(Store.default().require(name)[1])


@app.command()
def fetch(
    names: Names,
    accept: Annotated[bool, typer.Option("--accept", help="Agree to the licence of what is named.")] = False,
) -> None:
    """Download files, resuming what was broken off."""
    store = Store.default()
    for name in names:
        weight = store.record(name)
        pin_before = store.pinned(weight)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        agreed = accept or _asked(store, weight)
        screen = Console(stderr=True)
        with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
            show = partial(_show, bar, bar.add_task(weight.name, total=None))
            typer.echo(store.fetch(weight.name, accept=agreed, progress=show))
        pin = store.pinned(weight)
        if pin != pin_before:
            typer.echo(f"{weight.name}: no digest is published; pinned this first download's sha256 {pin}", err=True)


def _asked(store: Store, weight: Weight) -> bool:
    """Whether the person at the terminal agrees to a licence that nobody agreed to yet; False without a question."""
    if store.accepted(weight) or store.locate(weight) is not None or not sys.stdin.isatty():
        return False
    return typer.confirm(f"{weight.name}: licence {weight.licence} ({weight.source}). Do you agree?", err=True)


def _show(bar: Progress, task: TaskID, done: int, total: int | None) -> None:
    bar.update(task, completed=done, total=total)


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names or paths; all files that are here without one.")
    ] = None,
) -> None:
    """Read files whole and compare them with what is published or pinned."""
    store = Store.default()
    wrong = []
    for name in names or [weight.name for weight, _ in store.present()]:
        verdict = store.verify(name)
        typer.echo(f"{'ok' if verdict.ok else 'WRONG'}  {verdict.path}: {verdict.says}")
        if not verdict.ok:
            wrong.append(verdict)
    if wrong:
        raise WeightsInvalid(wrong[0].path, f"{wrong[0].says}; delete it and fetch it again")


@app.command()
def accept(names: Names) -> None:
    """Agree to the licence of non-commercial weights, once."""
    store = Store.default()
    for name in names:
        weight = store.accept(name)
        typer.echo(f"{weight.name}: {weight.licence}; {'needs no consent' if weight.commercial else 'accepted'}")
