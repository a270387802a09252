"""`facefix web`: the page. 0 it was stopped, 2 wrong usage or Gradio is not installed."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
from pathlib import Path
from typing import Annotated

import typer

from facefix.cli_parts import Device, remark
from facefix.errors import UsageError

SAFETY = "Who may use it"


def web(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. 127.0.0.1 lets this machine alone in; 0.0.0.0 everybody who reaches it: then "
            "give --auth, too.",
            rich_help_panel=SAFETY,
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 7860,
    input_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of this machine whose photos the archive tab may restore. Without it there is none: uploads "
            "only.",
            show_default=False,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that the archive tab writes to; made where it is not there.", show_default=False),
    ] = None,
    device: Device = "auto",
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="FACEFIX_WEB_AUTH",
            help="Ask visitors for this user and password. In the environment variable it is not seen by other users "
            "of this machine.",
            show_default=False,
            rich_help_panel=SAFETY,
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Another name under which visitors reach this server, as HOST or HOST:PORT; may be given again. "
            "Requests that name other hosts are refused.",
            show_default=False,
            rich_help_panel=SAFETY,
        ),
    ] = None,
    keep_minutes: Annotated[
        float,
        typer.Option(min=0.01, help="Remove a visitor's uploads and results so long after their last click."),
    ] = 60,
    max_megabytes: Annotated[int, typer.Option(min=1, help="The largest upload.")] = 200,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse photos of more pixels, by their header, before anything is decoded.")
    ] = 100_000_000,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the address and what went wrong.")] = False,
) -> None:
    """Serve a page: drop a photo, compare before and after, choose the faces, download.

    The page needs nothing from the internet, and sends nothing there. Unless --host says otherwise, only this machine
    reaches it. It serves no files but uploads and what it made of them; all of that is removed when it ends.

    Ctrl-C stops it.

    [bold]Examples[/bold]

      facefix web

      facefix web --input-dir scans/ --output-dir restored/

      FACEFIX_WEB_AUTH=anna:secret facefix web --host 0.0.0.0 --name photos.example.org
    """
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("facefix web: expected Gradio, which is not installed; run `pip install 'facefix[web]'`")
    from facefix.web import server

    login = _login(auth)
    with contextlib.closing(server.bound(host, port)) as listening:
        from facefix.web.house import MEGABYTE, House

        house = House(
            input_dir=input_dir,
            output_dir=output_dir,
            device=device,
            max_bytes=max_megabytes * MEGABYTE,
            max_pixels=max_pixels,
            keep_seconds=keep_minutes * 60,
        )
        if not server.is_loopback(host):
            remark(
                f"--host {host}: everybody who reaches this machine over the network can use the page"
                + ("" if login else ", and may see --input-dir and change --output-dir; --auth USER:PASSWORD asks who")
                + "; without HTTPS in front of it, others on the way can read along"
            )
        names = tuple(name or ())
        # it ends as well by being told to as by Ctrl-C: what visitors left is removed either way
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.closing(house), contextlib.suppress(KeyboardInterrupt):
            server.serve(house, listening, names=names, auth=login, started=lambda address: _told(address, quiet))


def _told(address: str, quiet: bool) -> None:
    print(address, flush=True)
    if not quiet:
        print("Ctrl-C stops it.", flush=True)


def _login(auth: str | None) -> tuple[str, str] | None:
    """User and password.

    Raises:
        UsageError: one of them is missing.
    """
    if auth is None:
        return None
    user, _, password = auth.partition(":")
    if not user or not password:
        raise UsageError("--auth: expected USER:PASSWORD, got something else; neither may be empty")
    return user, password
