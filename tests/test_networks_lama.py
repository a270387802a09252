"""A LaMa checkpoint, of any format and with whatever it carries, gives its tensors, and nothing in it runs."""

import importlib
import os
import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_lama import TINY, made_generator, made_state
from made_networks import (
    FORMATS,
    JUNK,
    NARROW,
    Code,
    State,
    as_safetensors,
    complaints,
    compressed,
    relative,
    saved,
    without,
)
from torch import Tensor, nn

from facefix import networks, statefile
from facefix.errors import WeightsInvalid
from facefix.ffc import Generator, Shape
from facefix.ffc_fast import Folded

LAMA = "expected a LaMa checkpoint"


@pytest.fixture(scope="module")
def lama_state() -> State:
    return made_state(Generator.layout(TINY))


class Traced(nn.Module):
    """What the published TorchScript archive holds: the generator inside of a module that takes picture and hole."""

    def __init__(self) -> None:
        super().__init__()
        module = importlib.import_module("spandrel.architectures.LaMa.__arch.LaMa")
        kinds = {"enable_lfu": False}
        none = kinds | {"ratio_gin": 0, "ratio_gout": 0}
        both = kinds | {"ratio_gin": 0.75, "ratio_gout": 0.75}
        self.model = module.FFCResNetGenerator(
            4, 3, ngf=2, n_blocks=2, init_conv_kwargs=none, downsample_conv_kwargs=none, resnet_conv_kwargs=both
        )

    def forward(self, picture: Tensor, hole: Tensor) -> Tensor:
        return self.model.model(torch.cat([picture * (1 - hole), hole], dim=1))


class Callback:
    """Stands for a class of a training framework, which nobody has installed; pickled by its name."""

    def __init__(self, best: Tensor) -> None:
        self.best = best
        self.monitor = {"fid": [1.0, 2.0]}


class ListLike(list):
    """Stands for a configuration's list."""


def lightning(state: State, **more: object) -> dict[str, object]:
    """What a training framework saves: the generator beside other networks, callbacks by class, settings, progress."""
    return {
        "epoch": 11,
        "global_step": 25_000,
        "callbacks": {Callback: {"best_model_score": torch.tensor(0.5), "callback": Callback(torch.zeros(2))}},
        "hyper_parameters": OrderedDict(generator=ListLike([Callback(torch.ones(1)), 3]), data={"path": Path("x")}),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "state_dict": OrderedDict(
            {"discriminator.model0.0.weight": torch.full((2, 2), torch.nan)}
            | {f"generator.{name}": tensor for name, tensor in state.items()}
        ),
        **more,
    }


def foreign(path: Path, content: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, saved with classes of a module that is not there when the file is read."""
    module = types.ModuleType("strange_training")
    for kind in (Callback, ListLike):
        monkeypatch.setattr(kind, "__module__", module.__name__)
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    saved(path, content)
    monkeypatch.delitem(sys.modules, module.__name__)
    return path


def zipped_checkpoint(path: Path, state: State) -> Path:
    inner = saved(path.with_suffix(".inner"), lightning(state))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big-lama/config.yaml", "generator:\n  kind: ffc_resnet\n")
        archive.write(inner, "big-lama/models/best.ckpt")
    return path


LAMA_FILES: dict[str, Callable[[Path, State], Path]] = {
    "state dict": saved,
    "generator's": lambda path, state: saved(path, {f"generator.{name}": t for name, t in state.items()}),
    "wrapped": lambda path, state: saved(path, {"gen_state_dict": {f"model.{name}": t for name, t in state.items()}}),
    "parameters": lambda path, state: saved(path, {n: nn.Parameter(t) if t.ndim else t for n, t in state.items()}),
    "Lightning": lambda path, state: saved(path, lightning(state)),
    "zip around Lightning": zipped_checkpoint,
    "compressed": compressed,
    "legacy": FORMATS["legacy"][1],
    "safetensors": as_safetensors,
}


@pytest.mark.parametrize("write", LAMA_FILES.values(), ids=LAMA_FILES)
def test_lama_is_read_from_every_format(
    tmp_path: Path, lama_state: State, write: Callable[[Path, State], Path]
) -> None:
    found = networks.load_lama(write(tmp_path / "GPEN-BFR-512.pth", lama_state))
    expected = Folded(made_generator(TINY)).state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    assert not any(module.training for module in found.modules())


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_lama_is_float32_whatever_the_file_holds(tmp_path: Path, lama_state: State, dtype: torch.dtype) -> None:
    stored = {n: t.to(dtype) if t.is_floating_point() else t for n, t in lama_state.items()}
    found = networks.load_lama(saved(tmp_path / "w.pth", stored))
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.float32}
    exact = networks.load_lama(saved(tmp_path / "w.pth", stored), precision=torch.float64)
    assert {tensor.dtype for tensor in exact.state_dict().values()} == {torch.float64}


def test_lama_needs_no_counters_of_training(tmp_path: Path, lama_state: State) -> None:
    bare = {name: tensor for name, tensor in lama_state.items() if not name.endswith("num_batches_tracked")}
    assert networks.load_lama(as_safetensors(tmp_path / "w.safetensors", bare))


def test_a_checkpoint_with_classes_that_nobody_has_gives_its_tensors(
    tmp_path: Path, lama_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = foreign(tmp_path / "best.ckpt", lightning(lama_state), monkeypatch)
    with pytest.raises(ModuleNotFoundError, match="strange_training"):
        torch.load(path, weights_only=False)
    found = statefile.read_network(path, networks.FIRST_OF_LAMA)
    assert list(found) == list(lama_state)
    assert all(torch.equal(found[name], tensor) for name, tensor in lama_state.items())


def test_a_torchscript_archive_gives_its_tensors_without_torch_jit(
    tmp_path: Path, lama_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("spandrel")
    state = made_state(Generator.layout(Shape((2, 4, 8, 16), 4, 2)))
    module = Traced()
    module.model.load_state_dict(state)
    path = tmp_path / "big-lama.pt"
    picture, hole = torch.rand(1, 3, 32, 40), torch.zeros(1, 1, 32, 40)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the published file was made with it
        traced = torch.jit.trace(module.eval(), (picture, hole), check_trace=False)
        torch.jit.save(traced, path)
        expected = traced(picture, hole)
    monkeypatch.delattr(torch.jit, "load")
    found = statefile.read_network(path, networks.FIRST_OF_LAMA)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    with torch.no_grad():
        assert relative(networks.load_lama(path)(torch.cat([picture, hole], dim=1)), expected) < 1e-5


class Reduced:
    """Asks for a call when it is unpickled, with arguments and everything else that the protocol knows."""

    def __init__(self, *answer: object) -> None:
        self.answer = answer

    def __reduce__(self) -> tuple[Any, ...]:
        return self.answer


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["beside", "within", "instead"])
def test_hostile_objects_in_a_checkpoint_stay_inert(
    tmp_path: Path, witness: Path, lama_state: State, protocol: int, place: str
) -> None:
    hostile = [
        Code(witness),
        Reduced(os.system, (f"mkdir {witness}",)),
        Reduced(eval, (f"__import__('os').mkdir({str(witness)!r})",)),
        Reduced(Callback, (torch.zeros(1),), {"best": Code(witness)}, iter([Code(witness)]), iter([("a", 1)])),
        Reduced(getattr, (Reduced(__import__, ("os",)), "mkdir")),
    ]
    path = tmp_path / "best.ckpt"
    if place == "instead":
        saved(path, hostile, pickle_protocol=protocol)
        with pytest.raises(WeightsInvalid, match=LAMA):
            networks.load_lama(path)
        return
    content = lightning(lama_state, hostile=hostile)
    if place == "within":
        content["state_dict"] = {"a": hostile[0], **content["state_dict"], "generator.extra": hostile[1]}
    saved(path, content, pickle_protocol=protocol)
    if protocol == 0:  # torch itself cannot read what it writes so
        assert "damaged" in lama_refusal(path)
    else:
        networks.load_lama(path)


def test_hostile_objects_in_a_torchscript_archive_stay_inert(tmp_path: Path, witness: Path, lama_state: State) -> None:
    plain = saved(tmp_path / "plain.pth", lama_state)
    path = tmp_path / "big-lama.pt"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("plain/constants.pkl", pickle.dumps((Code(witness),), 2))
        new.writestr("plain/code/__torch__.py", f"import os\nos.mkdir({str(witness)!r})\n")
    networks.load_lama(path)


def lama_refusal(path: Path) -> str:
    with pytest.raises(WeightsInvalid) as caught:
        networks.load_lama(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 700
    return caught.value.problem


BLOCK = "model.6.conv2.ffc.convg2g.fu.conv_layer.weight"

LAST = "model.18.weight"

ODD = "model.6.conv1.ffc.gate.weight"

LAMA_MISFITS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (lambda s: without(s, BLOCK), f"{BLOCK} is missing"),
    "missing block": (lambda s: {n: t for n, t in s.items() if "model.6." not in n}, "model.17.weight is missing"),
    "missing end": (lambda s: without(s, LAST), f"is no complete LaMa generator: tensor {LAST} is missing"),
    "unknown": (lambda s: {**s, ODD: torch.zeros(2)}, f"{ODD} is unknown"),
    "shape": (lambda s: {**s, BLOCK: torch.zeros(4, 4, 1, 1)}, f"{BLOCK} has shape (4, 4, 1, 1) instead of (6, 6,"),
    "integers": (lambda s: {**s, BLOCK: s[BLOCK].int()}, f"{BLOCK} is torch.int32"),
    "no axes": (lambda s: {**s, "model.2.ffc.convl2l.weight": torch.tensor(1.0)}, "is no complete LaMa generator"),
    "two halvings": (lambda s: without(s, "model.4.ffc.convl2l.weight"), "expected 3 halvings, got 2"),
    "NaN": (lambda s: {**s, BLOCK: s[BLOCK] * torch.nan}, f"tensor {BLOCK} holds NaN"),
    "infinite": (lambda s: {**s, LAST: s[LAST] / 0}, f"tensor {LAST} holds NaN or infinite"),
}


@pytest.mark.parametrize(("spoil", "what"), LAMA_MISFITS.values(), ids=LAMA_MISFITS)
@pytest.mark.parametrize("write", [saved, as_safetensors], ids=["pth", "safetensors"])
def test_lama_tensors_that_do_not_fit_are_named(
    tmp_path: Path,
    lama_state: State,
    spoil: Callable[[State], State],
    what: str,
    write: Callable[[Path, State], Path],
) -> None:
    assert what in lama_refusal(write(tmp_path / "w.pth", spoil(lama_state)))


@pytest.mark.parametrize(("content", "what"), JUNK.values(), ids=JUNK)
def test_files_that_are_no_lama_are_named_for_what_they_are(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "big-lama.pt"
    path.write_bytes(content)
    if "safetensors" not in what and "zip" not in what:
        assert what in lama_refusal(path)
    assert lama_refusal(path)


def test_other_networks_are_named_by_their_first_tensors(tmp_path: Path, state: State) -> None:
    for write in (saved, as_safetensors, FORMATS["legacy"][1]):
        problem = lama_refusal(write(tmp_path / "w.pth", state))
        assert "another network (first tensors: " in problem
        assert next(iter(state)) in problem or write is as_safetensors
    assert "is another network (first tensors: none)" in lama_refusal(saved(tmp_path / "w.pth", [1, 2]))


@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_truncated_lama_files_are_refused(tmp_path: Path, lama_state: State, part: float) -> None:
    whole = saved(tmp_path / "whole", lightning(lama_state)).read_bytes()
    path = tmp_path / "best.ckpt"
    path.write_bytes(whole[: int(part * len(whole))])
    assert "damaged or truncated" in lama_refusal(path)


def test_whatever_is_damaged_in_a_checkpoint_is_refused_or_read(tmp_path: Path, lama_state: State) -> None:
    original = saved(tmp_path / "zip", lightning(lama_state)).read_bytes()
    messages = complaints(networks.load_lama, tmp_path / "w.ckpt", [original], rounds=150, reach=9000)
    assert len(messages) > 50
    assert all(message.isprintable() for message in messages)


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path, lama_state: State) -> None:
    huge = {**lama_state, BLOCK: torch.zeros(1).expand(10**6, 10**6)}
    assert f"{BLOCK} not as plain numbers" in lama_refusal(saved(tmp_path / "w.pth", huge))
