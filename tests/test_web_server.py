"""The page's server: who may ask it for what, what it answers to programs, and the command's errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from archive import group_photo
from conftest import Command
from PIL import Image
from web_server import Served

pytest.importorskip("gradio")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from facefix.errors import UsageError
from facefix.web.house import House
from facefix.web.server import Guard, Hosts, bound, is_loopback, page_app

pytestmark = pytest.mark.usefixtures("temporary")

SECRET = "a secret of this machine"
ELSEWHERE = "https://elsewhere.example"
README = Path(__file__).parents[1] / "README.md"
EXAMPLE = """\
from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860/")
file, report = client.predict(handle_file("grandma.jpg"), strength=0.8, api_name="/restore")
print(report["summary"], file)
file, report = client.predict({"1": 0, "2": 0.5}, api_name="/reblend")
"""


def asked(host: str = "127.0.0.1:7860", path: str = "/", method: str = "GET", **headers: str) -> dict[str, Any]:
    """What an ASGI server makes of a request."""
    told = {"host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in told.items()],
    }


HERE = Hosts.of("127.0.0.1", 7860)


@pytest.mark.parametrize(
    ("request_", "refused"),
    [
        (asked(), False),
        (asked("localhost:7860"), False),
        (asked("LOCALHOST:7860", origin="http://localhost:7860", sec_fetch_site="same-origin"), False),
        (asked("[::1]:7860"), False),
        (asked(sec_fetch_site="cross-site", sec_fetch_mode="navigate"), False),  # a link to the page
        (asked(sec_fetch_site="none", sec_fetch_mode="navigate"), False),
        (asked("elsewhere.example:7860"), True),  # a foreign name that was pointed here
        (asked("127.0.0.1"), True),
        (asked("127.0.0.1:7861"), True),
        (asked("", path="/config"), True),
        (asked(origin=ELSEWHERE), True),
        (asked(origin="null"), True),
        (asked(origin="http://127.0.0.1:8000"), True),  # another server of this machine
        (asked(origin="http://localhost:7860"), True),
        (asked(path="/gradio_api/file=x.jpg", sec_fetch_site="cross-site", sec_fetch_mode="no-cors"), True),
        (asked(path="/gradio_api/file=x.jpg", sec_fetch_site="cross-site", sec_fetch_mode="navigate"), True),
        (asked(path="/gradio_api/file=x.jpg", sec_fetch_site="same-site", sec_fetch_mode="no-cors"), True),
        (asked(method="POST", sec_fetch_site="cross-site", sec_fetch_mode="navigate"), True),
        (asked(path="/gradio_api/proxy=http://10.0.0.1/"), True),
        (asked(path="/gradio_api/file=HTTPS://10.0.0.1/"), True),
        (asked(path="/gradio_api/file=%68ttp://10.0.0.1/"), True),
        (asked(path="/monitoring"), True),
    ],
)
def test_a_request_must_come_from_the_page_itself(request_: dict[str, Any], refused: bool) -> None:
    problem = Guard(None, HERE).problem(request_)
    assert (problem is not None) == refused, problem
    assert problem is None or "\n" not in problem


def test_what_a_server_may_be_called() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")] == [True] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.4", "photos.example")] == [False] * 4
    home = Hosts.of("192.168.1.4", 7860)
    assert [home.know(host) for host in ("192.168.1.4:7860", "localhost:7860", "192.168.1.5:7860")] == [
        True,
        True,
        False,
    ]
    everywhere = Hosts.of("0.0.0.0", 7860, ("Photos.example",))
    for host in ("192.168.1.4:7860", "[fe80::1]:7860", "photos.example", "PHOTOS.example:7860", "localhost:7860"):
        assert everywhere.know(host), host
    for host in ("elsewhere.example:7860", "", "192.168.1.4.elsewhere.example:7860", "1@elsewhere.example"):
        assert not everywhere.know(host), host
    assert Guard(None, everywhere).problem(asked("192.168.1.4:7860", origin=ELSEWHERE)) is not None
    assert Guard(None, everywhere).problem(asked("192.168.1.4:7860")) is None


def test_visitors_are_asked_who_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(parent=tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(house.root))

    async def look() -> list[int]:
        app = Guard(page_app(house, ("anna", "secret")), Hosts.of("0.0.0.0", 80, ("photos.example",)))
        codes = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://photos.example") as client:
            for password in (None, "wrong", "secret"):
                if password is not None:
                    codes.append(
                        (await client.post("login", data={"username": "anna", "password": password})).status_code
                    )
                codes += [(await client.get(route)).status_code for route in ("config", "gradio_api/info")]
        return codes

    with contextlib.closing(house):
        assert asyncio.run(look()) == [401, 401, 400, 401, 401, 200, 200, 200]


def root_of(server: Served) -> Path:
    [root] = server.temporary.glob("facefix-web-*")
    return root


def test_no_other_file_of_the_machine_is_served(page_server: Served) -> None:
    root, inputs = root_of(page_server), page_server.temporary.parent / "in"
    secret = page_server.temporary.parent / "secret.txt"
    secret.write_text(SECRET)
    (inputs / "scan.txt").write_text(SECRET)
    (root / "link.txt").symlink_to(secret)
    (inputs / "link.txt").symlink_to(secret)
    climbing = f"{root}/../../secret.txt"
    wanted = [
        "/etc/passwd",
        *(str(path) for path in (secret, root / "link.txt", inputs / "scan.txt", inputs / "link.txt")),
        climbing,
        climbing.replace("../", "%2e%2e%2f"),
        climbing.replace("../", "..%252f"),
        "../../../../../../etc/passwd",
        "..%2f..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/etc/passwd%00.jpg",
        "~/.bashrc",
        "file:///etc/passwd",
        str(root),
        "http://127.0.0.1:9/",
        "https://elsewhere.example/",
    ]
    served = root / "served.txt"
    served.write_text(SECRET)
    with httpx.Client(base_url=page_server.address, verify=False) as client:
        for path in wanted:
            for route in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "svelte/"):
                with_host = client.get(f"{route}{path}")
                assert with_host.status_code in (400, 403, 404, 405), (route, path)
                assert SECRET not in with_host.text
                assert "root:" not in with_host.text
        # and what is meant to be served is, or this test tells nothing
        assert client.get(f"gradio_api/file={served}").text == SECRET
        assert client.get("gradio_api/proxy=http://127.0.0.1:9/").status_code == 403
        assert client.get("monitoring").status_code == 403


def endpoint(client: httpx.Client, name: str, first: Any) -> list[Any]:
    """The data of a call: this first, then the defaults."""
    parameters = client.get("gradio_api/info").json()["named_endpoints"][name]["parameters"]
    return [first, *(each["parameter_default"] for each in parameters[1:])]


@pytest.mark.parametrize("kind", ["bare", "told as an upload", "elsewhere"])
def test_only_what_was_uploaded_is_taken(page_server: Served, kind: str, tmp_path: Path) -> None:
    face = tmp_path / "private.png"
    Image.fromarray(group_photo()).save(face)
    path = "http://93.184.215.14/private.png" if kind == "elsewhere" else str(face)
    given: Any = {"path": path} if kind == "bare" else {"path": path, "meta": {"_type": "gradio.FileData"}}
    with httpx.Client(base_url=page_server.address, verify=False, timeout=60) as client:
        call = client.post("gradio_api/call/restore", json={"data": endpoint(client, "/restore", given)})
        assert call.status_code == 200
        answer = client.get(f"gradio_api/call/restore/{call.json()['event_id']}").text
    assert answer.startswith("event: error")
    assert ("got an address elsewhere" in answer) == (kind == "elsewhere")
    assert not list(root_of(page_server).rglob("private*"))


def test_a_page_from_elsewhere_gets_nothing(page_server: Served) -> None:
    host = httpx.URL(page_server.address).netloc.decode()
    with httpx.Client(base_url=page_server.address, verify=False) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"origin": f"http://{host}"}).status_code == 200
        for headers in ({"origin": ELSEWHERE}, {"host": "elsewhere.example"}, {"sec-fetch-site": "cross-site"}):
            for route in ("config", "gradio_api/info", "gradio_api/file=x.jpg"):
                refused = client.get(route, headers=headers)
                assert refused.status_code == 403
                assert refused.text.startswith("facefix: expected ")
                assert refused.text.count("\n") == 1
            files = {"files": ("a.png", b"x")}
            assert client.post("gradio_api/upload", files=files, headers=headers).status_code == 403
            assert client.options("gradio_api/upload", headers=headers).status_code == 403
        policy = client.get("/").headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http:" not in policy + str(client.get("theme.css").headers)
        assert "googleapis" not in client.get("/").text + client.get("theme.css").text


@pytest.mark.parametrize("tab", ["restore", "inpaint"])
def test_what_was_begun_with_a_photo_ends_when_it_is_taken_away(page_server: Served, tab: str) -> None:
    """Or another photo that is given meanwhile is not heard of: Gradio's page begins nothing that is under way."""
    config = httpx.get(f"{page_server.address}config").json()
    by_name = {each["props"].get("elem_id"): each["id"] for each in config["components"]}

    def deeds(name: str, event: str) -> list[dict[str, Any]]:
        return [each for each in config["dependencies"] if [by_name[f"{tab}-{name}"], event] in each["targets"]]

    begun = {each["id"] for each in (*deeds("photo", "upload"), *deeds("start", "click"))}
    assert begun
    assert begun <= {id for each in deeds("photo", "clear") for id in each["cancels"]}


@pytest.fixture(scope="module")
def client(page_server: Served, tmp_path_factory: pytest.TempPathFactory) -> Client:
    got = str(tmp_path_factory.mktemp("client"))
    return Client(page_server.address, verbose=False, ssl_verify=False, download_files=got)


@pytest.fixture
def group_file(tmp_path: Path) -> Path:
    path = tmp_path / "group.jpg"
    Image.fromarray(group_photo()).save(path, quality=92)
    return path


def test_the_documented_example_works(
    page_server: Served, group_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "gradio_client" in README.read_text():
        assert EXAMPLE in README.read_text()
    group_file.rename(group_file.with_name("grandma.jpg"))
    monkeypatch.chdir(group_file.parent)
    known: dict[str, Any] = {}
    here = f"{page_server.address!r}, download_files={str(group_file.parent)!r}"
    exec(EXAMPLE.replace('"http://127.0.0.1:7860/"', here), known)
    assert "3 of 3 faces restored with facefix-lite-256. 500 × 240 px. " in capsys.readouterr().out
    assert Path(known["file"]).name == "grandma.facefix.jpg"
    assert [face["outcome"] for face in known["report"]["faces"]] == ["skipped", "restored", "restored"]
    assert [face["strength"] for face in known["report"]["faces"]] == [0, 0.5, 0.8]


def test_wrong_things_are_one_line(page_server: Served, client: Client, group_file: Path, tmp_path: Path) -> None:
    text, wide, big = tmp_path / "notes.jpg", tmp_path / "wide.png", tmp_path / "big.jpg"
    text.write_text("nothing of a photo")
    Image.new("L", (2100, 2000)).save(wide)
    big.write_bytes(bytes(3_200_000))

    def told(*given: Any, api_name: str = "/restore", **settings: Any) -> str:
        with pytest.raises((AppError, ValueError)) as caught:
            client.predict(*given, api_name=api_name, **settings)
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)
        assert str(page_server.temporary) not in str(caught.value)
        return str(caught.value)

    assert told(handle_file(str(text))).startswith("notes.jpg: expected a picture, got text; ")
    assert "expected at most 4,000,000 pixels, got 2100x2000" in told(handle_file(str(wide)))
    Image.new("L", (1000, 600)).save(wide)
    assert "expected at most 8 megapixels when enlarged, got 10" in told(handle_file(str(wide)), scale=4)
    assert "exceeds the maximum file size of 3145728 bytes" in told(handle_file(str(big)))
    for path in ("/etc/passwd", str(group_file)):
        assert "not in the list of choices" in told(handle_file(str(group_file)), restorer=path)
    assert "2 is greater than maximum value 1" in told(handle_file(str(group_file)), strength=2)
    client.predict(handle_file(str(group_file)), restorer="pattern", api_name="/restore")
    assert told({"7": 1}, api_name="/reblend").startswith("face 7: expected one that was restored")
    for wrong in ("all", [1], {"one": 1}, {"1": "half"}, {"1": True}):
        assert told(wrong, api_name="/reblend").startswith("strengths: expected numbers by face"), wrong
    with httpx.Client(base_url=page_server.address, verify=False) as plain:
        answer = plain.post("gradio_api/upload", files={"files": ("big.jpg", big.read_bytes())})
    assert answer.status_code == 413


def test_what_cannot_be_written_again_becomes_a_png(client: Client, tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(group_photo())).save(tmp_path / "phone.heic")
    heic = handle_file(str(tmp_path / "phone.heic"))
    file, report = client.predict(heic, restorer="pattern", api_name="/restore")
    assert Path(file).name == "phone.facefix.png"
    with Image.open(file) as picture:
        assert (picture.format, picture.size) == ("PNG", (500, 240))
    assert len(report["faces"]) == 3


def test_two_clients_do_not_mix(page_server: Served, client: Client, group_file: Path, tmp_path: Path) -> None:
    other = Client(page_server.address, verbose=False, ssl_verify=False, download_files=str(tmp_path))
    single = tmp_path / "single.png"
    Image.fromarray(group_photo()[:, 300:]).save(single)
    first, _ = client.predict(handle_file(str(group_file)), restorer="pattern", api_name="/restore")
    with pytest.raises(AppError, match="not kept any more"):
        other.predict({}, api_name="/reblend")
    file, report = other.predict(handle_file(str(single)), restorer="identity", api_name="/restore")
    assert (Path(file).name, len(report["faces"])) == ("single.facefix.png", 1)
    file, report = client.predict({}, api_name="/reblend")
    assert (Path(file).name, len(report["faces"])) == ("group.facefix.jpg", 3)
    assert Path(file).read_bytes() == Path(first).read_bytes()


def test_the_command_says_in_one_line_what_cannot_be(facefix: Command, tmp_path: Path) -> None:
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        done = facefix("web", "--port", port)
        assert (done.code, done.out) == (2, "")
        assert f"--port {port}: Address already in use; choose another --port" in done.err
    for options, says in (
        (("--auth", "anna"), "--auth: expected USER:PASSWORD"),
        (("--auth", ":x"), "--auth: expected USER:PASSWORD"),
        (("--host", "203.0.113.7"), "--host 203.0.113.7"),
        (("--input-dir", tmp_path / "none"), "expected a folder, got none"),
        (("--input-dir", tmp_path / ("n" * 300)), "expected a folder, got none"),
    ):
        done = facefix("web", "--port", 0, *options)
        assert done.code == 2
        assert says in done.err
        assert done.err.count("\n") == 1
    with pytest.raises(UsageError):
        bound("nowhere.invalid", 0)


def test_help_teaches(facefix: Command) -> None:
    told = facefix("web", "--help").out
    for word in ("before and after", "--host", "--input-dir", "--keep-minutes", "--auth", "facefix web"):
        assert word in told


def test_without_gradio_one_line_says_what_to_install() -> None:
    hide = "import sys, importlib.util as u; f = u.find_spec; u.find_spec = lambda n: None if n == 'gradio' else f(n)"
    run = "; sys.argv = ['facefix', 'web', '--port', '0']; from facefix.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", hide + run], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith("run `pip install 'facefix[web]'`")
    assert len(done.stderr.splitlines()) == 1


def test_the_command_itself_stays_light() -> None:
    code = "import sys, facefix.cli; print(json.dumps(sorted({'gradio', 'fastapi', 'uvicorn'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", "import json; " + code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_socket_is_there_before_anything_is_loaded() -> None:
    with bound("127.0.0.1", 0) as listening:
        assert listening.family == socket.AF_INET
        assert listening.getsockname()[1] > 0
