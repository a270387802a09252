"""Devices, precisions, batches: pictures go in and come out as they are, and a full memory is answered by halving."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from facefix import networks, runtime
from facefix.errors import DeviceError
from facefix.types import Pixels

CPU = torch.device("cpu")


def pictures(count: int, height: int = 6, width: int = 9, seed: int = 0) -> list[Pixels]:
    return list(np.random.default_rng(seed).random((count, height, width, 3), np.float32))


class Doubling(nn.Module):
    """A small real network: it doubles the size, and mixes channels and neighbours."""

    device = CPU

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ConvTranspose2d(3, 3, 2, stride=2)
        self.taken: list[tuple[int, ...]] = []

    def forward(self, batch: Tensor) -> Tensor:
        self.taken.append(tuple(batch.shape))
        return self.body(batch)


class Bounded(Doubling):
    """The same on a device that holds `most` pictures at once."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most = most
        self.error = error

    def forward(self, batch: Tensor) -> Tensor:
        result = super().forward(batch)
        if len(batch) > self.most:
            raise self.error
        return result


# --- devices and precisions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu", CPU])
def test_devices_by_name(name: str | torch.device) -> None:
    assert runtime.choose_device(name) == CPU


def test_auto_takes_the_best_device_there_is() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert runtime.choose_device("auto").type == runtime.choose_device().type == best
    assert torch.ones(2, device=runtime.choose_device()).sum().item() == 2


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "CPU", "cpu:", "two\nlines"])
def test_words_that_are_no_device_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="expected auto, cpu, cuda, cuda:N or mps") as caught:
        runtime.choose_device(name)
    assert "\n" not in str(caught.value)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["cuda:99", "xpu", "meta", torch.device("meta"), torch.device("cuda", 99)], ids=str)
def test_devices_that_are_not_here_are_refused(name: str | torch.device) -> None:
    with pytest.raises(DeviceError, match=r"is not available here; choose auto or one of cpu") as caught:
        runtime.choose_device(name)
    assert str(name) in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_is_refused_exactly_where_there_is_none(name: str) -> None:
    if torch.cuda.is_available():
        assert runtime.choose_device(name).type == "cuda"
    else:
        with pytest.raises(DeviceError, match="not available here"):
            runtime.choose_device(name)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_precisions_by_name_and_type(name: str) -> None:
    dtype = getattr(torch, name)
    assert runtime.choose_precision(name, CPU) is runtime.choose_precision(dtype, CPU) is dtype


def test_auto_precision() -> None:
    fast = runtime.has_fast_bfloat16()
    assert runtime.choose_precision("auto", CPU) is (torch.bfloat16 if fast else torch.float32)
    assert runtime.choose_precision("auto", torch.device("cuda")) is torch.float16
    assert runtime.choose_precision("auto", torch.device("mps")) is torch.float16


def test_fast_bfloat16_is_what_the_processor_says() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "avx" not in flags.read_text(encoding="utf-8"):
        pytest.skip("needs Linux on x86")
    assert runtime.has_fast_bfloat16() == ("avx512_bf16" in flags.read_text(encoding="utf-8"))


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
def test_float16_needs_a_gpu(dtype: str | torch.dtype) -> None:
    with pytest.raises(DeviceError, match="float16 needs a GPU; choose float32, bfloat16 or auto"):
        runtime.choose_precision(dtype, CPU)
    assert runtime.choose_precision(dtype, torch.device("cuda")) is torch.float16


@pytest.mark.parametrize("name", ["half", "", "int8", "float64", torch.float64, torch.int8], ids=str)
def test_other_precisions_are_refused(name: str | torch.dtype) -> None:
    with pytest.raises(DeviceError, match="expected auto, float32, bfloat16, float16, got"):
        runtime.choose_precision(name, CPU)


# --- pictures and tensors --------------------------------------------------------------------------------------------


def test_channels_rows_and_columns_keep_their_order() -> None:
    (picture,) = pictures(1, 4, 7)
    batch = runtime.to_batch([picture])
    assert batch.shape == (1, 3, 4, 7)
    assert batch.dtype == torch.float32
    for row, column, channel in np.ndindex(4, 7, 3):
        assert batch[0, channel, row, column].item() == pytest.approx(2 * picture[row, column, channel] - 1, abs=1e-6)


def test_the_range_is_minus_one_to_one() -> None:
    steps = np.array([0, 0.25, 0.5, 1], np.float32)
    picture = np.repeat(steps[None, :, None], 3, axis=2)
    assert runtime.to_batch([picture])[0, 0, 0].tolist() == [-1, -0.5, 0, 1]


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.0, 1.0), (0.4, 0.3)])
def test_round_trip(mean: float, std: float) -> None:
    given = [np.ascontiguousarray(pictures(1, seed=seed)[0][:, ::-1])[:, ::-1] for seed in range(3)]
    kept = [picture.copy() for picture in given]
    found = runtime.from_batch(runtime.to_batch(given, mean=mean, std=std), mean=mean, std=std)
    for picture, original, result in zip(given, kept, found, strict=True):
        assert np.array_equal(picture, original)
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
        assert result.flags.writeable
        np.testing.assert_allclose(result, original, atol=2e-7)


def test_from_batch_clips_leaves_the_tensor_alone_and_takes_any_precision() -> None:
    batch = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 0.5]).view(1, 3, 1, 2).requires_grad_()
    expected = np.array([[[0.0, 0.5, 1.0], [0.0, 1.0, 0.75]]], np.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert np.array_equal(runtime.from_batch(batch.to(dtype))[0], expected)
    assert batch.min().item() == -3


def test_pictures_of_several_sizes_and_none_make_no_batch() -> None:
    with pytest.raises(ValueError, match="one size"):
        runtime.to_batch([*pictures(1, 4, 4), *pictures(1, 4, 5)])
    with pytest.raises(ValueError, match="one size"):
        runtime.to_batch([])


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 50])
def test_run_equals_one_by_one(batch: int) -> None:
    network, given = Doubling(), pictures(7)
    found = runtime.run(network, given, batch=batch)
    assert [shape[0] for shape in network.taken] == [min(batch, 7 - start) for start in range(0, 7, batch)]
    for picture, result in zip(given, found, strict=True):
        with torch.no_grad():
            raw = network(torch.from_numpy(picture * 2 - 1).permute(2, 0, 1)[None])[0]
        expected = np.clip(raw.permute(1, 2, 0).numpy() / 2 + 0.5, 0, 1)
        assert result.shape == (12, 18, 3)
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_run_with_a_real_restorer_and_with_nothing(tiny_gpen_file: Path) -> None:
    network = networks.load(tiny_gpen_file)
    given = pictures(3, 64, 64)
    together = runtime.run(network, given, batch=2)
    for picture, result in zip(given, together, strict=True):
        np.testing.assert_allclose(result, runtime.run(network, [picture])[0], atol=1e-5)
    assert runtime.run(network, []) == []


def test_run_uses_the_mean_and_spread_both_ways() -> None:
    given = pictures(2)

    class Same(Doubling):
        def forward(self, batch: Tensor) -> Tensor:
            assert batch.min() >= -0.25
            assert batch.max() > 2
            return batch

    for picture, result in zip(given, runtime.run(Same(), given, mean=0.1, std=0.4), strict=True):
        np.testing.assert_allclose(result, picture, atol=1e-6)


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity"),
    torch.OutOfMemoryError("Tried to allocate 2.00 GiB"),
    torch.OutOfMemoryError(),
    MemoryError(),
    MemoryError("Unable to allocate 3.2 GiB for an array"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_batches_are_halved_until_they_fit(error: Exception) -> None:
    given = pictures(11)
    network = Bounded(2, error)
    found = runtime.run(network, given, batch=8)
    assert [shape[0] for shape in network.taken] == [8, 4, 2, 2, 2, 2, 2, 1]
    for result, expected in zip(found, runtime.run(Doubling(), given), strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_halving_comes_from_what_was_left_of_an_uneven_batch() -> None:
    network = Bounded(1, MemoryError())
    assert len(runtime.run(network, pictures(3), batch=50)) == 3
    assert [shape[0] for shape in network.taken] == [3, 1, 1, 1]


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_a_single_face_that_does_not_fit_is_a_device_error(error: Exception) -> None:
    with pytest.raises(DeviceError, match="out of memory with a single face") as caught:
        runtime.run(Bounded(0, error), pictures(3))
    assert "\n" not in str(caught.value)


def test_a_real_failed_allocation_is_recognised() -> None:
    """One picture asks for 64 MB, several for more than an address space holds."""

    def compute(group: Sequence[Pixels]) -> Tensor:
        torch.empty(1 << (26 if len(group) == 1 else 55), dtype=torch.uint8)
        return runtime.to_batch(group)

    given = pictures(3)
    found = torch.cat(list(runtime.in_batches(compute, given, 3)))
    assert torch.equal(found, runtime.to_batch(given))


def test_parts_are_computed_only_when_they_are_asked_for() -> None:
    network = Doubling()
    parts = runtime.in_batches(lambda group: network(runtime.to_batch(group)), pictures(4), 2)
    assert network.taken == []
    next(parts)
    assert [shape[0] for shape in network.taken] == [2]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError(), ValueError("x"), KeyError("y")],
    ids=repr,
)
def test_other_errors_pass(error: Exception) -> None:
    network = Bounded(2, error)
    with pytest.raises(type(error)) as caught:
        runtime.run(network, pictures(4))
    assert caught.value is error
    assert len(network.taken) == 1


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_nothing_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        runtime.run(Doubling(), pictures(2), batch=size)


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_the_first_option_that_fits_is_taken(error: Exception) -> None:
    tried = []

    def compute(tile: int) -> str:
        tried.append(tile)
        if tile > 20:
            raise error
        return "made"

    assert runtime.fitting(compute, [64, 32, 16, 8], "rest") == ("made", 16)
    assert tried == [64, 32, 16]
    with pytest.raises(DeviceError, match=r"out of memory \(.+\); take a smaller one") as caught:
        runtime.fitting(compute, [64, 32], "take a smaller one")
    assert "\n" not in str(caught.value)


def test_options_are_not_tried_after_other_errors() -> None:
    tried = []

    def compute(tile: int) -> None:
        tried.append(tile)
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        runtime.fitting(compute, [64, 32], "rest")
    assert tried == [64]


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_give_the_same_numbers_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (torch.randn(5, generator=runtime.seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert runtime.seeded(7, CPU).device == CPU
