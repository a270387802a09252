"""Nothing in a weight file runs, and what is damaged, cut or no weight file is refused in one line."""

import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_networks import (
    EXPECTED,
    FORMATS,
    JUNK,
    Code,
    State,
    as_safetensors,
    complaints,
    made,
    refusal,
    saved,
    small,
    zipped,
)
from safetensors.torch import save_file
from torch import Tensor

from facefix import networks
from facefix.errors import WeightsInvalid, WeightsMissing
from facefix.statefile import read_network


def test_the_code_of_these_tests_would_run_in_a_plain_unpickler(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Code(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("container", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_runs(tmp_path: Path, witness: Path, state: State, container: str, protocol: int) -> None:
    content = {"g_ema": state, "extra": Code(witness)}
    path = tmp_path / "w.pth"
    if container == "pickle":
        path.write_bytes(pickle.dumps({"extra": Code(witness)}, protocol))
    else:
        saved(path, content, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    problem = refusal(path)
    if protocol in (2, 3):
        assert f"asks for {os.mkdir.__module__}.mkdir" in problem
        assert "not run" in problem
    elif protocol >= 4:
        assert "not run" in problem
    else:
        assert EXPECTED in problem


def test_a_harmless_pickle_that_torch_cannot_read_is_refused_with_advice(tmp_path: Path, state: State) -> None:
    problem = refusal(saved(tmp_path / "w.pth", state, pickle_protocol=4))
    assert "have its author save a plain state dict" in problem


def test_code_where_the_weights_should_be_and_of_the_oldest_kind_does_not_run(tmp_path: Path, witness: Path) -> None:
    assert "asks for" in refusal(saved(tmp_path / "a.pth", Code(witness)))
    oldest = tmp_path / "b.pth"
    oldest.write_bytes(f"cos\nmkdir\n(V{witness}\ntR.".encode())
    assert "pickle of the oldest kind" in refusal(oldest)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "x" * 10_000], ids=["lines", "escape", "long"])
def test_names_of_tensors_cannot_spoil_the_message(tmp_path: Path, state: State, name: str) -> None:
    for index, content in enumerate(
        [{name: torch.zeros(2)}, {name: torch.tensor([torch.nan])}, {**state, name: torch.zeros(2)}, {name: "text"}]
    ):
        assert name[:5].encode("unicode_escape").decode() in refusal(saved(tmp_path / f"{index}.pth", content))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**6, 10**6), torch.zeros(3, 3, device="meta"), torch.eye(3).to_sparse()],
    ids=["expanded to 4 TB", "without numbers", "sparse"],
)
def test_tensors_that_are_not_plain_numbers_are_refused(tmp_path: Path, state: State, tensor: Tensor) -> None:
    content = {**state, "generator.conv1.conv.weight": tensor}
    assert "generator.conv1.conv.weight not as plain numbers" in refusal(saved(tmp_path / "w.pth", content))


def test_many_names_for_the_same_numbers_are_refused_before_they_are_copied(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    numbers = torch.zeros(1 << 20)
    for value in (numbers, numbers[:1].expand(1 << 20), numbers[7 : 1 << 19]):
        path = saved(tmp_path / "w.pth", {f"a.t{number}": value for number in range(100)})
        for read in (networks.read_state, lambda path: read_network(path, "t0")):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with pytest.raises(WeightsInvalid, match=r"claims \d+,\d+,\d+ bytes, far more than a file of 4,\d+,\d+"):
                read(path)
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_deflated_zeros_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain.pth", {f"a.t{number}": torch.zeros(4 << 20) for number in range(5)})
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(plain) as full, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as deflated:
        for entry in full.infolist():
            deflated.writestr(entry.filename, full.read(entry))
    for read in (networks.read_state, lambda path: read_network(path, "t0")):
        tracemalloc.start()
        with pytest.raises(WeightsInvalid, match=r"claims 8\d,\d+,\d+ bytes, far more than a file of"):
            read(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 4 << 20


@pytest.mark.parametrize("container", ["zip", "pickle"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("__builtin__.bytearray", b"c__builtin__\nbytearray\nJ\0\0\0\x08\x85R"),
        ("_codecs.encode", b"c_codecs\nencode\n" * 26 + b"U\x02ab" + b"U\x03hex\x86R" * 26),
    ],
    ids=["filled", "doubled"],
)
def test_calls_that_fill_the_memory_are_not_made(tmp_path: Path, container: str, name: str, call: bytes) -> None:
    path, content = tmp_path / "w.pth", b"\x80\x02}U\x01a" + call + b"s."
    path.write_bytes(zipped(**{"a/data.pkl": content, "a/version": b"3\n"}) if container == "zip" else content)
    assert f"asks for {name}; it was not run" in refusal(path)


def test_a_pickle_that_counts_to_a_large_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for content in (b"\x80\x02}r\0\0\0\x01.", b"\x80\x02}p16777216\n."):
        path.write_bytes(zipped(**{"a/data.pkl": content}))
        with pytest.raises(WeightsInvalid, match="a pickle that counts wrong"):
            read_network(path, "t")


def test_long_names_that_many_tensors_share_are_not_spelt_out(tmp_path: Path) -> None:
    shared = {f"{number}": torch.zeros(2)[:1] for number in range(100)}
    path = saved(tmp_path / "w.pth", {"net": {"t": torch.ones(1)}, "x" * 1_000_000: shared})
    tracemalloc.start()
    assert read_network(path, "t") == {"t": torch.ones(1)}
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 20_000_000


@pytest.mark.parametrize("length", range(5))
def test_safetensors_may_begin_like_a_pickle(tmp_path: Path, length: int) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"t": torch.ones(1)}, path, metadata={"note": "-" * (45 + 256 * length)})
    assert path.read_bytes()[:2] == bytes([0x80, length])
    assert networks.read_state(path) == {"t": torch.ones(1)}


def test_tied_weights_are_read(tmp_path: Path) -> None:
    numbers = torch.arange(12.0).reshape(3, 4)
    path = saved(tmp_path / "w.pth", {"n.first": numbers, "n.tied": numbers, "n.row": numbers[1]})
    expected = {"first": numbers, "tied": numbers, "row": numbers[1]}
    state = read_network(path, "first")
    for found in (state, {name[2:]: tensor for name, tensor in networks.read_state(path).items()}):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    save_file(state, tmp_path / "w.safetensors")  # which refuses tensors that share their numbers


def test_whatever_is_damaged_is_refused_or_read(tmp_path: Path) -> None:
    """Bytes changed at random, in every container, never end in another error than ours."""
    tensors = made(small(8, channels=[2, 2], style_dim=2, n_mlp=1))
    originals = [
        saved(tmp_path / "zip", tensors).read_bytes(),
        saved(tmp_path / "legacy", tensors, _use_new_zipfile_serialization=False).read_bytes(),
        as_safetensors(tmp_path / "safetensors", tensors).read_bytes(),
    ]
    messages = complaints(networks.load, tmp_path / "w.pth", originals, rounds=240, reach=5000)
    assert len(messages) > 60
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("write", [saved, FORMATS["legacy"][1], as_safetensors], ids=["pth", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_truncated_files_are_refused(
    tmp_path: Path, state: State, write: Callable[[Path, State], Path], part: float
) -> None:
    whole = write(tmp_path / "whole", state).read_bytes()
    path = tmp_path / "w.pth"
    path.write_bytes(whole[: int(part * len(whole))])
    problem = refusal(path)
    assert "truncated" in problem or "damaged" in problem
    assert "download it again" in problem


@pytest.mark.parametrize(("content", "what"), JUNK.values(), ids=JUNK)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, what: str, suffix: str) -> None:
    path = tmp_path / f"GPEN-BFR-512{suffix}"
    path.write_bytes(content)
    assert what in refusal(path)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    with pytest.raises(WeightsMissing) as caught:
        networks.load(tmp_path / "none.pth")
    assert str(tmp_path / "none.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([torch.zeros(2)], "a value of type list, not named tensors"),
        (torch.zeros(2), "a value of type Tensor, not named tensors"),
        ({}, "an empty dict"),
        ({"g_ema": {}}, "an empty dict"),
        ({"epoch": 3, "lr": 0.1}, "a value of type int under 'epoch'"),
        ({"params": torch.zeros(2)}, "first tensors: params"),
        ({0: torch.zeros(2)}, "first tensors: 0"),
    ],
    ids=str,
)
def test_content_that_is_no_state_dict(tmp_path: Path, content: object, what: str) -> None:
    assert what in refusal(saved(tmp_path / "w.pth", content))
