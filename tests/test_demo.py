"""The demo script, in a clone of its own whose environment stands already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facefix.imagefile.encode import FORMAT_OF

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The script in a folder with an environment that needs no setup."""
    command = tmp_path / ".venv/bin/facefix"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m facefix "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv/.facefix-").touch()
    (tmp_path / "scripts").mkdir()
    for name in ("demo.sh", "setup.sh"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    return tmp_path / "scripts/demo.sh"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_demo_takes_photos_of_formats_that_are_only_read(demo: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photo = tmp_path / "scan"
    Image.fromarray(rng.integers(0, 256, (48, 64), np.uint8)).save(photo, "GIF")
    environment = {**os.environ, "FACEFIX_VENV": str(tmp_path / ".venv")}
    done = subprocess.run(
        ["sh", demo, photo], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "demo/scan.facefix.png") as result:
        assert (result.format, result.size) == ("PNG", (64, 48))
    assert str(tmp_path / "demo/scan.facefix.png") in done.stdout


def test_the_demo_knows_every_suffix_that_is_written() -> None:
    line = next(line for line in (SCRIPTS / "demo.sh").read_text(encoding="utf-8").splitlines() if "jpg |" in line)
    assert {f".{suffix.strip()}" for suffix in line.split(")")[0].split(" | ")} == set(FORMAT_OF)
