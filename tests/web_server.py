"""The real page for tests: `facefix web` in a process of its own, and Chromium looking at it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE_S = 40
_Told = TypeVar("_Told")


@dataclass(frozen=True)
class Served:
    """A server that runs: where it answers, and the folder for temporary files that is its own."""

    address: str
    temporary: Path
    process: subprocess.Popen[str]


@contextlib.contextmanager
def served(folder: Path, *options: object, ctrl_c: int = 1, **environment: str) -> Iterator[Served]:
    """`facefix web --port 0` with these options; it must end cleanly, however often Ctrl-C is pressed."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    own = {
        "TMPDIR": str(temporary),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        # Gradio's own dependencies warn
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "facefix", "web", "--port", "0", *map(str, options)]
    with (folder / "stderr").open("w") as complaints:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, text=True, env={**os.environ, **own, **environment}
        )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), (folder / "stderr").read_text()
        yield Served(address, temporary, process)
    finally:
        for _ in range(ctrl_c):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        process.communicate(timeout=PATIENCE_S)
    complained = (folder / "stderr").read_text()
    assert process.returncode == 0, complained
    assert "Cancel" not in complained, complained  # whatever pages are still open
    assert list(temporary.glob("facefix-web-*")) == []


@contextlib.contextmanager
def chromium(folder: Path, width_px: int = 1280) -> Iterator[Any]:
    """Headless Chromium that saves to folder/downloads; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "no-proxy-server",
        f"window-size={width_px},900",
        f"user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(f"--{switch}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def phone(driver: Any, width_px: int = 390) -> None:
    """Make the page as narrow as a phone's."""
    size = {"width": width_px, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def until(what: Callable[[], _Told], patience_s: float = PATIENCE_S) -> _Told:
    """What `what` gives as soon as it is true; fails where it never is."""
    end, pause_s = time.monotonic() + patience_s, 0.02
    while True:
        told = what()
        if told:
            return told
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.2)


class Page:
    """The page in the browser, as a person meets it."""

    def __init__(self, driver: Any, address: str, tab: str | None = None) -> None:
        self.driver = driver
        driver.get(address)
        until(lambda: driver.find_elements("css selector", "[role=tab]"))
        if tab is not None:
            [button] = [each for each in self.all("[role=tab]") if each.text == tab]
            button.click()

    def all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", css))

    def one(self, css: str) -> Any:
        """The element, as soon as it is there."""
        return until(lambda: self.all(css))[0]

    def upload(self, css: str, path: Path) -> None:
        """Give a file to an upload control, inside the element of that selector."""
        self.one(f"{css} input[type=file]").send_keys(str(path))

    def text(self, css: str) -> str:
        return str(self.one(css).text)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def told(self) -> list[str]:
        """The lines of the toasts that are shown."""
        toasts = "[...document.querySelectorAll('[data-testid=toast-text]')]"  # one may go while they are read
        return list(self.run(f"return {toasts}.map(each => each.innerText.trim()).filter(each => each)"))

    def fetched_elsewhere(self) -> list[str]:
        """What was asked of other servers."""
        names = self.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        own = tuple(f"{scheme}{self.driver.current_url.split('?')[0]}" for scheme in ("", "blob:"))
        return [name for name in names if not name.startswith((*own, "data:"))]
