"""The server around the page, and who may ask it for what.

A page that is open elsewhere in the visitor's browser can send requests here, too. So every request must name this
server as its host (a foreign name that was pointed here is refused: DNS rebinding), must not come from another origin,
and may not have Gradio fetch anything from other servers. Answers say that only this server's own parts
may be loaded, and that no other page may frame them.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from facefix.errors import UsageError

if TYPE_CHECKING:
    from facefix.web.house import House

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_FETCHES_ELSEWHERE = ("/gradio_api/proxy=", "/gradio_api/file=http:", "/gradio_api/file=https:", "/monitoring")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to this name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        UsageError: it is taken, or no address of this machine.
    """
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        advice = "choose another --port, or 0 for a free one" if host in _LOOPBACK_NAMES else "see --host and --port"
        raise UsageError(f"--host {host} --port {port}: {error.strerror or error}; {advice}") from error
    return listening


def serve(
    house: House,
    listening: socket.socket,
    *,
    names: tuple[str, ...] = (),
    auth: tuple[str, str] | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the house's page until the process is told to stop (Ctrl-C or SIGTERM).

    Args:
        house: what the page works with; its root becomes the one folder that files are served from.
        listening: the socket, from `bound`.
        names: further names under which visitors reach this server.
        auth: a user and a password that visitors are asked for.
        started: called with the page's address when it answers.
    """
    # Gradio reads these when it is first imported, or makes its components
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(house.root), HF_HUB_DISABLE_TELEMETRY="1")
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(house.root / "examples")
    import uvicorn

    host, port = listening.getsockname()[:2]

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started(f"http://{f'[{host}]' if ':' in host else host}:{port}/")

    app = Guard(page_app(house, auth), Hosts.of(host, port, names))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
    server = Server(config)
    # of the pages that are still open when it is told to stop, uvicorn would print a traceback each
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    server.run([listening])


@dataclass(frozen=True, slots=True)
class Hosts:
    """What the Host header of a request may say.

    Args:
        written: as it is written there, in lower case.
        numbers: whether any address in numbers will do, too: no foreign name can be one.
    """

    written: frozenset[str]
    numbers: bool = False

    @classmethod
    def of(cls, host: str, port: int, names: tuple[str, ...] = ()) -> Hosts:
        """Those of a server that is bound there, and is reached by these names besides."""
        everywhere = host in ("0.0.0.0", "::")
        own = {*_LOOPBACK_NAMES, *names, *([socket.gethostname()] if everywhere else [host])}
        bare = {f"[{name}]" if name.count(":") > 1 else name for name in map(str.lower, own)}
        plain = {name.lower() for name in names} | (bare if port == 80 else set())
        return cls(frozenset({f"{name}:{port}" for name in bare} | plain), everywhere)

    def know(self, header: str) -> bool:
        """Whether the header names this server."""
        if header.lower() in self.written:
            return True
        return self.numbers and _is_number(urlsplit(f"//{header}").hostname or "")


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Guard:
    """The app behind the rules at the top of this module.

    Args:
        app: what answers.
        hosts: what the Host header may say.
    """

    def __init__(self, app: Any, hosts: Hosts) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        problem = self.problem(scope)
        if problem is not None:
            await _refuse(send, problem)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def problem(self, scope: Any) -> str | None:
        """Why the request is refused, in one line; None where it is not."""
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        host = headers.get("host", "")
        if not self.hosts.know(host):
            return f"expected this server's own address, got {host!r}; open the address that facefix web printed"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "expected a request from this server's own page, got one from another; open it in a tab of its own"
        navigates = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET" and scope["path"] == "/"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not navigates:
            return "expected a request from this server's own page, got one from another; open it in a tab of its own"
        path = unquote(scope["path"]).lower()
        if path.startswith(_FETCHES_ELSEWHERE):
            return "expected one of this server's own files, got another's; facefix web fetches nothing from elsewhere"
        return None


async def _refuse(send: Any, problem: str) -> None:
    body = f"facefix: {problem}\n".encode("utf-8", "backslashreplace")
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refused_download(*_: Any, **__: Any) -> str:
    from facefix.web.words import trouble

    raise trouble("expected a file that was uploaded, got an address elsewhere; download it, and upload it here")


def page_app(house: House, auth: tuple[str, str] | None) -> Any:
    """The page as an ASGI app."""
    import fastapi
    import gradio as gr

    from facefix.web.page import look, page

    # Gradio would fetch a photo whose address somebody sends in place of an upload
    gr.processing_utils.async_ssrf_protected_download = _refused_download
    blocks = page(house)
    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        blocks,
        "/",
        footer_links=["api", "settings"],
        run_history=False,
        auth=auth,
        auth_message="This page asks for the user and password that facefix web was started with.",
        show_error=False,
        max_file_size=house.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **look(),
    )
    # only then are paths checked that a browser sends for uploads
    blocks.has_launched = True
    return app
