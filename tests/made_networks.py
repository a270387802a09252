"""What the tests of weight files share: networks with drawn numbers, files of them, and hostile pickles."""

import io
import os
import random
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from facefix import networks
from facefix.errors import WeightsInvalid
from facefix.gpen import GPEN

State = dict[str, Tensor]

EXPECTED = "expected a GPEN, GFPGAN or RestoreFormer checkpoint"


def made(model: nn.Module, seed: int = 0) -> State:
    """Every tensor of the model, drawn anew so that none is zero and all of them matter; the blur kernels as they are.

    A model on the meta device serves too: only its names and shapes are needed.
    """
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(".kernel"):
            state[name] = tensor.clone()
            continue
        drawn = torch.randn(tensor.shape, generator=draw)
        if name.endswith("bias") or tensor.ndim < 2:
            drawn *= 0.1
        elif not isinstance(model, GPEN):
            drawn *= tensor[0].numel() ** -0.5
        elif ".style." in name:  # stored divided by the learning rate multiplier
            drawn *= 100
        state[name] = drawn + (1 if name.endswith(("modulation.bias", "noise.weight")) else 0)
    return state


def small(size: int = 32, **options: Any) -> GPEN:
    options.setdefault("channels", [8] * (size.bit_length() - 2))
    options.setdefault("style_dim", 16)
    options.setdefault("n_mlp", 2)
    return GPEN(size, **options)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def refusal(path: Path) -> str:
    """The problem that the file is refused for, after the checks that hold for every refusal."""
    with pytest.raises(WeightsInvalid) as caught:
        networks.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    assert caught.value.path == path
    assert len(caught.value.problem) < 600
    return caught.value.problem


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def compressed(path: Path, state: State) -> Path:
    """The checkpoint as someone's archiver packed it anew: the tensors' bytes are no longer in the file as such."""
    original = saved(path.with_suffix(".zip"), state)
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return path


def as_safetensors(path: Path, state: State) -> Path:
    save_file(state, path)
    return path


FORMATS: dict[str, tuple[str, Callable[[Path, State], Path]]] = {
    "pth": ("w.pth", saved),
    "pt": ("w.pt", saved),
    "legacy": ("w.pth", lambda path, state: saved(path, state, _use_new_zipfile_serialization=False)),
    "compressed zip": ("w.pth", compressed),
    "pth under another name": ("w.safetensors", saved),
    "legacy under another name": ("w.safetensors", lambda path, state: FORMATS["legacy"][1](path, state)),
    "safetensors": ("w.safetensors", as_safetensors),
    "safetensors under another name": ("w.pth", as_safetensors),
}

NARROW = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


class Code:
    """Creates the file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def zipped(**files: str | bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 284085738\n"

JUNK: dict[str, tuple[bytes, str]] = {
    "LFS pointer": (POINTER.encode(), "is a Git LFS pointer"),
    "web page": (b"<!DOCTYPE html>\n<html><body>Quota exceeded</body></html>", "is a web page"),
    "web page after blanks": (b"\r\n  <HTML>\n<head>", "is a web page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    "text": (b"Not Found\n", "is a text file"),
    "JSON": (b'{"error": {"code": 404}}\n', "is a text file"),
    "empty": (b"", "is empty"),
    "one byte": (b"\x80", "is of no known kind"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(600), "is of no known kind (it begins with ffd8ffe0)"),
    "zeros": (bytes(5000), "is of no known kind"),
    "another zip": (zipped(**{"a.txt": "x", "b/c.txt": "y"}), "is a zip archive without a checkpoint"),
    "huge safetensors header": (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "damaged or truncated safetensors"),
}


def without(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


def complaints(
    load: Callable[[Path], object], path: Path, originals: Sequence[bytes], *, rounds: int, reach: int
) -> list[str]:
    """What was said of files that were refused, their first `reach` bytes damaged at random; others were read."""
    draw = random.Random(0)
    messages = []
    for turn in range(rounds):
        data = bytearray(originals[turn % len(originals)])
        for _ in range(draw.choice([1, 20])):
            data[draw.randrange(min(len(data), reach))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            load(path)
        except WeightsInvalid as error:
            messages.append(str(error))
    return messages
