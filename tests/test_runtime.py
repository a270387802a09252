"""Devices, precisions, pictures to tensors, and what happens when memory runs out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from facefix import runtime
from facefix.errors import DeviceError


class Doubling:
    """A network whose memory holds `limit` pictures, and that remembers what it was given."""

    device = torch.device("cpu")

    def __init__(self, limit: int, error: Exception | None = None) -> None:
        self.limit, self.batches = limit, []
        self.error = error or RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    def __call__(self, pictures: Tensor) -> Tensor:
        self.batches.append(len(pictures))
        if len(pictures) > self.limit:
            raise self.error
        return pictures * 2


def pictures(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).random((6, 5, 3), dtype=np.float32) for i in range(count)]


def test_pictures_come_back_from_tensors() -> None:
    given = pictures(3)
    batch = runtime.to_batch(given)
    assert (batch.shape, batch.dtype) == ((3, 3, 6, 5), torch.float32)
    assert batch[1, 2, 3, 4].item() == pytest.approx(given[1][3, 4, 2] * 2 - 1, abs=1e-6)
    for found, expected in zip(runtime.from_batch(batch), given, strict=True):
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, atol=1e-6)
    plain = runtime.to_batch(given, mean=0, std=1)
    np.testing.assert_array_equal(runtime.from_batch(plain, mean=0, std=1)[2], given[2])


def test_read_only_pictures_are_taken_and_results_clipped() -> None:
    given = pictures(1)[0]
    given.flags.writeable = False
    assert runtime.from_batch(runtime.to_batch([given]) * 9)[0].max() == 1


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        runtime.to_batch([np.zeros((2, 2, 3), np.float32), np.zeros((3, 2, 3), np.float32)])


def test_run_goes_in_batches() -> None:
    network = Doubling(limit=4)
    found = runtime.run(network, pictures(7), batch=3)
    assert network.batches == [3, 3, 1]
    for one, given in zip(found, pictures(7), strict=True):
        np.testing.assert_allclose(one, np.clip(given * 2 - 0.5, 0, 1), atol=1e-6)
    assert runtime.run(network, []) == []


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_batches_are_halved_when_memory_runs_out(error: Exception | None) -> None:
    network = Doubling(limit=1, error=error)
    assert len(runtime.run(network, pictures(5), batch=4)) == 5
    assert network.batches == [4, 2, 1, 1, 1, 1, 1]


def test_one_picture_that_does_not_fit_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="out of memory with a single face"):
        runtime.run(Doubling(limit=0), pictures(2))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        runtime.run(Doubling(limit=0, error=RuntimeError("shapes cannot be multiplied")), pictures(1))


def test_devices() -> None:
    assert runtime.choose_device("cpu") == torch.device("cpu")
    assert runtime.choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(DeviceError, match="choose one of them"):
        runtime.choose_device("abacus")
    with pytest.raises(DeviceError, match="cuda:99 is not available here; choose auto or one of cpu"):
        runtime.choose_device("cuda:99")


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert runtime.choose_precision("float32", cpu) is torch.float32
    assert runtime.choose_precision(torch.bfloat16, cpu) is torch.bfloat16
    assert runtime.choose_precision("auto", torch.device("cuda")) is torch.float16
    for fast, expected in [(True, torch.bfloat16), (False, torch.float32)]:
        monkeypatch.setattr(runtime, "has_fast_bfloat16", lambda fast=fast: fast)
        assert runtime.choose_precision("auto", cpu) is expected
    with pytest.raises(DeviceError, match="needs a GPU"):
        runtime.choose_precision("float16", cpu)
    with pytest.raises(DeviceError, match="expected auto, float32"):
        runtime.choose_precision("int8", cpu)


def test_this_machine_can_be_asked_for_bfloat16() -> None:
    assert runtime.has_fast_bfloat16() in (True, False)


def test_a_seed_gives_the_same_numbers() -> None:
    draws = [torch.rand(3, generator=runtime.seeded(seed)) for seed in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
