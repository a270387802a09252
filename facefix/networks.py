"""A weight file becomes a network: read as tensors only, recognised by their names and shapes, in evaluation mode.

Nothing in a file is ever run, and nothing is taken from its name. What is not a known network is refused in one line
that says what the file is and what was expected.
"""

from __future__ import annotations

import importlib
import math
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from facefix import runtime
from facefix.errors import DeviceError, WeightsInvalid, WeightsMissing
from facefix.gpen import GPEN, Shape, blur_kernel

State = dict[str, Tensor]

WRAPPERS = ("g_ema", "params_ema", "params", "state_dict")
EXPECTED = "expected a GPEN, GFPGAN or RestoreFormer checkpoint (.pth, .pt or .safetensors)"
AGAIN = "download it again"
# What torch's reader runs into when the bytes make no sense to it.
DAMAGED = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, OverflowError,
    struct.error,
)  # fmt: skip


class Network(nn.Module):
    """A face restorer ready to run: (B, 3, in_size, in_size) RGB of -1..1 -> (B, 3, out_size, out_size) float32.

    Args:
        body: what computes; takes and gives tensors of `dtype` on `device`.
        architecture: the network's name, for reports.
        in_size: width and height of what it takes, px.
        out_size: width and height of what it gives, px.
        device: where it computes.
        dtype: its arithmetic.
    """

    def __init__(
        self,
        body: Callable[[Tensor], Tensor],
        architecture: str,
        in_size: int,
        out_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.body = body
        self.architecture = architecture
        self.in_size = in_size
        self.out_size = out_size
        self.device = device
        self.dtype = dtype
        self.eval().requires_grad_(False)

    @property
    def size(self) -> int:
        """Width and height of what it gives, px."""
        return self.out_size

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> Tensor:
        """The restored faces, on the network's device, as float32.

        Raises:
            ValueError: the pictures are not (B, 3, in_size, in_size).
        """
        if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (3, self.in_size, self.in_size):
            raise ValueError(f"expected (B, 3, {self.in_size}, {self.in_size}), got {tuple(pictures.shape)}")
        return self.body(pictures.to(self.device, self.dtype)).float()


def load(path: Path | str, *, device: str | torch.device = "cpu", precision: str | torch.dtype = "float32") -> Network:
    """The face restorer that the file holds.

    Args:
        path: a GPEN, GFPGAN (1.3, 1.4) or RestoreFormer checkpoint: .pth, .pt or .safetensors.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, float32, bfloat16 or float16, see `runtime`; or a torch dtype.

    Raises:
        WeightsMissing: there is no such file.
        WeightsInvalid: the file is damaged, hostile, or holds another network.
        DeviceError: no such device here, or it cannot compute with that precision.
    """
    path = Path(path)
    where = runtime.choose_device(device)
    dtype = runtime.choose_precision(precision, where)
    state = read_state(path)
    if looks_like_gpen(state):
        model = _gpen(path, state).to(where, dtype)
        return Network(model, "GPEN", model.in_size, model.size, where, dtype)
    asked = precision not in ("auto", "float32", torch.float32)
    return _through_spandrel(path, state, where, dtype, asked)


# --- tensors from a file ---------------------------------------------------------------------------------------------


def read_state(path: Path) -> State:
    """The flat mapping of tensors that the file holds, on the CPU, without wrappers and `module.` prefixes.

    Raises:
        WeightsMissing: there is no such file.
        WeightsInvalid: the file is none of ours, damaged, hostile, or holds NaN or infinite numbers.
    """
    kind = _kind(path)
    state = _unwrapped(path, _read_safetensors(path) if kind == "safetensors" else _read_pickle(path, kind))
    for name, tensor in state.items():
        # An expanded tensor of few stored numbers can claim to hold more than could ever be summed.
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise WeightsInvalid(path, f"holds {name} not as plain numbers (sparse, expanded or none); {EXPECTED}")
        if tensor.is_floating_point() and not math.isfinite(float(tensor.sum(dtype=torch.float32))):
            raise WeightsInvalid(path, f"tensor {name} holds NaN or infinite numbers; {AGAIN}")
    return state


def _kind(path: Path) -> str:
    """What the file's first bytes say it is: safetensors, zip or pickle."""
    if path.is_dir():
        raise WeightsInvalid(path, f"is a folder; {EXPECTED}")
    if not path.exists():
        raise WeightsMissing(f"{path}: no such file; {EXPECTED}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsInvalid(path, f"cannot be read ({error.strerror}); allow it or name another file") from error
    if not head:
        raise WeightsInvalid(path, f"is empty; {EXPECTED}; {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsInvalid(path, f"is a Git LFS pointer, not the file itself; run `git lfs pull`, or {AGAIN}")
    if re.match(rb"\s*<(!doctype|html|\?xml|head|body)", head, re.IGNORECASE):
        raise WeightsInvalid(path, f"is a web page, probably of the download site; {EXPECTED}; {AGAIN}")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[0] == 0x80 and len(head) > 1 and head[1] < 6:
        return "pickle"
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    if re.match(rb"c\w+\n\w+\n", head):
        raise WeightsInvalid(path, f"is a pickle of the oldest kind, which only code can need; {EXPECTED}")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise WeightsInvalid(path, f"is a text file; {EXPECTED}")
    raise WeightsInvalid(path, f"is of no known kind (it begins with {head[:4].hex()}); {EXPECTED}")


def _read_safetensors(path: Path) -> State:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsInvalid(path, f"is a damaged or truncated safetensors file ({_line(error)}); {AGAIN}") from None


def _read_pickle(path: Path, kind: str) -> Any:
    """What torch reads from the file without running anything in it."""
    try:
        if kind == "zip" and not zipfile.is_zipfile(path):
            raise WeightsInvalid(path, f"is truncated: its table of contents is missing; {AGAIN}")
        # Torch takes the format from a path that ends so; given the open file it looks inside.
        mapped = kind == "zip" and path.suffix.lower() != ".safetensors" and _is_stored(path)
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL `?([\w.]+)|(?<=global: )`?(?!GLOBAL)([\w.]+)", str(error))
        if wanted:
            raise WeightsInvalid(
                path,
                f"is a pickle that asks for {wanted[1] or wanted[2]}; it was not run, as only tensors are read: "
                "do not trust this file, or have its author save a plain state dict",
            ) from None
        if "Unsupported operand" in str(error):
            raise WeightsInvalid(
                path,
                "is a damaged pickle, or of a protocol that cannot be read without running what is in it; it was not "
                f"run; {EXPECTED}; {AGAIN}, or have its author save a plain state dict",
            ) from None
        raise WeightsInvalid(path, f"is a damaged or foreign pickle; {EXPECTED}; {AGAIN}") from None
    except (*DAMAGED, OSError, zipfile.BadZipFile) as error:
        what = "a TorchScript archive" if "torchscript" in str(error).lower() else "damaged or truncated"
        if kind == "zip" and re.search(r"data\.pkl|not in a subdirectory", str(error)):
            what = "a zip archive without a checkpoint in it"
        raise WeightsInvalid(path, f"is {what}; {EXPECTED}; {AGAIN}") from None


def _is_stored(path: Path) -> bool:
    """Whether nothing in the archive is compressed, as only then its bytes are the tensors' own."""
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _unwrapped(path: Path, found: Any) -> State:
    """The tensors inside of what a checkpoint wraps them in."""
    for _ in range(3):
        inner = next((found[key] for key in WRAPPERS if isinstance(found, Mapping) and key in found), None)
        if not isinstance(inner, Mapping):
            break
        found = inner
    if not isinstance(found, Mapping) or not found:
        raise WeightsInvalid(path, f"holds {_article(found)}, not named tensors; {EXPECTED}")
    strange = next((name for name, value in found.items() if not isinstance(value, Tensor)), None)
    if strange is not None:
        raise WeightsInvalid(
            path, f"holds {_article(found[strange])} under {str(strange)[:40]!r}, not a tensor; {EXPECTED}"
        )
    state = {str(name): value.detach() for name, value in found.items()}
    odd = next((name for name in state if not name.isprintable() or len(name) > 200), None)
    if odd is not None:  # messages name tensors, and stay one short line
        raise WeightsInvalid(path, f"holds a tensor under the name {odd[:40]!r}, which no network has; {EXPECTED}")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _article(value: object) -> str:
    kind = type(value).__name__
    return f"an empty {kind}" if isinstance(value, Mapping) and not value else f"a value of type {kind}"


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


# --- GPEN ------------------------------------------------------------------------------------------------------------


def looks_like_gpen(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a GPEN network, as far as they identify one."""
    return "generator.conv1.conv.weight" in state and any(name.startswith("ecd0.") for name in state)


def _gpen(path: Path, state: State) -> GPEN:
    """The GPEN network of these tensors; raises WeightsInvalid and names the first that do not fit."""
    try:
        shape = Shape.of_state(state)
        expected = GPEN.layout(shape)
    except (KeyError, ValueError, IndexError) as error:
        detail = f"tensor {error.args[0]} is missing" if isinstance(error, KeyError) else _line(error)
        raise WeightsInvalid(path, f"is no complete GPEN network: {detail}; {EXPECTED}") from None
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)} instead of {size}"
        for name, size in expected.items()
        if name in state and tuple(state[name].shape) != size
    ]
    wrong += [f"{name} is unknown" for name in state if name not in expected]
    wrong += [f"{name} is {state[name].dtype}" for name in expected if name in state and not _floats(state[name])]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        kind = f"a GPEN network of {shape.size} px"
        raise WeightsInvalid(path, f"does not fit {kind}: {'; '.join(wrong[:3])}{more}; {EXPECTED}")
    for name, tensor in state.items():
        if name.endswith(".kernel") and not torch.allclose(tensor.float(), _kernel_named(name), atol=1e-4):
            raise WeightsInvalid(path, f"has another blur kernel ({name}) than GPEN's [1, 3, 3, 1]; {EXPECTED}")
    return GPEN.from_state({name: tensor.float() for name, tensor in state.items()})


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _kernel_named(name: str) -> Tensor:
    return blur_kernel(1.0 if name.startswith("ecd") else 4.0)


# --- restorers that spandrel knows -----------------------------------------------------------------------------------


class _Foreign(nn.Module):
    """A GFPGAN or RestoreFormer network, which both take and give -1..1.

    Spandrel's own call is not used: it takes 0..1 and hands that to GFPGAN as it is, which was trained with -1..1.
    GFPGAN's noise is the stored one, so that a face comes out the same every time.
    """

    def __init__(self, model: nn.Module, architecture: str) -> None:
        super().__init__()
        self.model = model
        self.options = {"return_rgb": False, "randomize_noise": False} if architecture == "GFPGAN" else {}

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, 512, 512) -> (B, 3, 512, 512)."""
        result: Tensor = self.model(pictures, **self.options)[0]
        return result


def _through_spandrel(path: Path, state: State, where: torch.device, dtype: torch.dtype, asked: bool) -> Network:
    names = ", ".join(list(state)[:3])
    try:
        spandrel = importlib.import_module("spandrel")
    except ImportError:
        advice = "for GFPGAN and RestoreFormer files, `pip install 'facefix[spandrel]'`"
        raise WeightsInvalid(path, f"is not a GPEN network (first tensors: {names}); {EXPECTED}; {advice}") from None
    try:
        found = spandrel.ModelLoader().load_from_state_dict(state)
    except spandrel.UnsupportedModelError:
        raise WeightsInvalid(path, f"is another network (first tensors: {names}); {EXPECTED}") from None
    except (RuntimeError, KeyError, ValueError, AssertionError, IndexError) as error:
        detail = " ".join(str(error).split())[:300]
        raise WeightsInvalid(path, f"is incomplete or of unknown dimensions: {detail}; {EXPECTED}") from None
    architecture = found.architecture.id
    if architecture not in ("GFPGAN", "RestoreFormer"):
        raise WeightsInvalid(path, f"is a {architecture} network (first tensors: {names}); {EXPECTED}")
    takes = {torch.float16: found.supports_half, torch.bfloat16: found.supports_bfloat16}
    if not takes.get(dtype, True):
        if asked:
            raise DeviceError(f"{architecture} cannot compute in {dtype}; choose precision float32 or auto")
        dtype = torch.float32
    body = _Foreign(found.model.eval().to(where, dtype), architecture)
    return Network(body, architecture, 512, 512, where, dtype)
