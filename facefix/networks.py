"""A weight file becomes a network: read as tensors only, recognised by their names and shapes, in evaluation mode.

Nothing in a file is ever run, and nothing is taken from its name. What is not a known network is refused in one line
that says what the file is and what was expected.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from facefix import ffc, runtime
from facefix.archivefile import State
from facefix.errors import DeviceError, WeightsInvalid
from facefix.ffc_fast import Folded
from facefix.gpen import GPEN, blur_kernel
from facefix.gpen_shape import Shape
from facefix.onnxfile import Graph, is_onnx
from facefix.statefile import read_network
from facefix.statefile import read_state as read_state

EXPECTED = "expected a GPEN, GFPGAN or RestoreFormer checkpoint (.pth, .pt, .safetensors or .onnx)"
EXPECTED_LAMA = "expected a LaMa checkpoint (.pt, .ckpt, .pth or .safetensors)"
FIRST_OF_LAMA = "model.1.ffc.convl2l.weight"


class Network(nn.Module):
    """A face restorer ready to run: (B, 3, in_size, in_size) RGB of -1..1 -> (B, 3, out_size, out_size) float32.

    GPEN's networks for other trades are called alike; the one that draws faces from label maps takes and gives 0..1.

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

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> Tensor:
        """The restored faces, on the network's device, as float32.

        Raises:
            ValueError: the pictures are not (B, 3, in_size, in_size).
        """
        if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (3, self.in_size, self.in_size):
            raise ValueError(f"expected (B, 3, {self.in_size}, {self.in_size}), got {tuple(pictures.shape)}")
        return self.body(pictures.to(self.device, self.dtype)).float()


@torch.inference_mode(False)  # tensors made inside of it take no gradient, nor count their changes
def load(path: Path | str, *, device: str | torch.device = "cpu", precision: str | torch.dtype = "float32") -> Network:
    """The face restorer that the file holds.

    Args:
        path: a GPEN, GFPGAN (1.3, 1.4) or RestoreFormer checkpoint: .pth, .pt or .safetensors; or the ONNX graph of
            a restorer, which computes as it was exported.
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
    asked = precision not in ("auto", "float32", torch.float32)
    if is_onnx(path):
        if asked:
            raise DeviceError(f"{path.name}: an ONNX file computes as it was exported; choose precision auto")
        graph = Graph(path, device)
        return Network(graph, graph.architecture, graph.in_size, graph.out_size, torch.device("cpu"), torch.float32)
    state = read_state(path, expected=EXPECTED)
    if looks_like_gpen(state):
        model = _gpen(path, state).to(where, dtype)
        return Network(model, "GPEN", model.in_size, model.size, where, dtype)
    return _through_spandrel(path, state, where, dtype, asked)


# --- GPEN ------------------------------------------------------------------------------------------------------------


def looks_like_gpen(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a GPEN network, as far as they identify one."""
    return "generator.conv1.conv.weight" in state and any(name.startswith("ecd0.") for name in state)


def _gpen(path: Path, state: State) -> GPEN:
    """The GPEN network of these tensors; raises WeightsInvalid and names the first that do not fit."""
    try:
        shape = Shape.of_state(state)
        layout = GPEN.layout(shape)
    except (KeyError, ValueError, IndexError) as error:
        raise _incomplete(path, error, "GPEN network", EXPECTED) from None
    _check_fit(path, state, layout, f"a GPEN network of {shape.size} px", EXPECTED)
    for name, tensor in state.items():
        if name.endswith(".kernel") and not torch.allclose(tensor.float(), _kernel_named(name), atol=1e-4):
            raise WeightsInvalid(path, f"has another blur kernel ({name}) than GPEN's [1, 3, 3, 1]; {EXPECTED}")
    return GPEN.from_state({name: tensor.float() for name, tensor in state.items()})


def _kernel_named(name: str) -> Tensor:
    return blur_kernel(1.0 if name.startswith("ecd") else 4.0)


# --- LaMa ------------------------------------------------------------------------------------------------------------


@torch.inference_mode(False)
def load_lama(
    path: Path | str, *, device: str | torch.device = "cpu", precision: torch.dtype = torch.float32
) -> Folded:
    """The LaMa generator that the file holds, of any width and any number of blocks.

    Args:
        path: `big-lama.pt` (TorchScript), `best.ckpt` (Lightning) or the `big-lama.zip` around it, a state dict as
            .pth, or .safetensors.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: torch.float32, or torch.float64; Fourier transforms know nothing less on a CPU.

    Raises:
        WeightsMissing: there is no such file.
        WeightsInvalid: the file is damaged, or holds another network.
        DeviceError: no such device here.
    """
    path, where = Path(path), runtime.choose_device(device)
    state = read_network(path, FIRST_OF_LAMA, expected=EXPECTED_LAMA)
    try:
        shape = ffc.Shape.of_state(state)
        layout = ffc.Generator.layout(shape)
    except (KeyError, ValueError, IndexError) as error:
        raise _incomplete(path, error, "LaMa generator", EXPECTED_LAMA) from None
    for name in layout:  # some exports leave out what only training needs
        if name.endswith(".num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
    kind = f"a LaMa generator of width {shape.widths[0]} with {shape.blocks} blocks"
    _check_fit(path, state, layout, kind, EXPECTED_LAMA)
    generator = ffc.Generator.from_state(
        {name: tensor.to(precision) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    )
    return Folded(generator).to(where)


# --- what does not fit -----------------------------------------------------------------------------------------------


def _incomplete(path: Path, error: Exception, kind: str, expected: str) -> WeightsInvalid:
    """What to raise when a network's dimensions cannot be told from its tensors."""
    detail = f"tensor {error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
    return WeightsInvalid(path, f"is no complete {kind}: {detail}; {expected}")


def _check_fit(path: Path, state: State, layout: Mapping[str, tuple[int, ...]], kind: str, expected: str) -> None:
    """Nothing, where names and shapes are the layout's.

    Raises:
        WeightsInvalid: they are not; the message names the first that do not fit.
    """
    wrong = [f"{name} is missing" for name in layout if name not in state]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)} instead of {size}"
        for name, size in layout.items()
        if name in state and tuple(state[name].shape) != size
    ]
    wrong += [f"{name} is unknown" for name in state if name not in layout]
    wrong += [
        f"{name} is {state[name].dtype}"
        for name in layout
        if name in state and not state[name].is_floating_point() and not name.endswith(".num_batches_tracked")
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsInvalid(path, f"does not fit {kind}: {'; '.join(wrong[:3])}{more}; {expected}")


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
