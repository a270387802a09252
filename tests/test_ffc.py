"""The LaMa generator computes what the published one computes, in both of its forms, gradients included."""

from __future__ import annotations

import pytest
import torch
from made_lama import RECORD, SMALL, TINY, made_generator, made_state
from torch import Tensor

from facefix import ffc_fast
from facefix.ffc import Generator, Shape, reflected
from facefix.ffc_fast import Folded

NAMES = {row[0]: tuple(row[1]) for row in RECORD["tensors"]}
SHAPES = {
    "small": SMALL,
    "tiny": TINY,
    "nine blocks": Shape((2, 4, 4, 6), 2, 9),
    "capped widths": Shape((4, 8, 8, 8), 2, 1),
    "odd half": Shape((2, 2, 4, 9), 2, 1),
    "other channels": Shape((2, 4, 8, 16), 12, 1, inputs=5, outputs=1),
}


def seen(height: int, width: int, dtype: torch.dtype = torch.float64, channels: int = 4, batch: int = 1) -> Tensor:
    drawn = torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(height * width))
    drawn[:, -1:] = (drawn[:, -1:] > 0.7).float()
    return drawn.to(dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_names_shapes_and_order_are_the_checkpoints() -> None:
    layout = Generator.layout(SMALL)
    assert list(layout.items()) == list(NAMES.items())
    assert sum(p.numel() for p in Generator.hollow(SMALL).parameters()) == RECORD["parameter_count"]


def test_the_made_weights_are_the_recorded_ones() -> None:
    state = made_state(NAMES)
    for name, _, *sums in RECORD["tensors"]:
        if sums:
            values = state[name].double()
            assert (float(values.sum()), float(values.abs().sum())) == pytest.approx(sums, rel=1e-9, abs=1e-9), name


def test_big_lama_has_its_published_size() -> None:
    model = Generator.hollow(Shape())
    assert sum(p.numel() for p in model.parameters()) == 50_975_875
    assert len(model.state_dict()) == 989


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_dimensions_are_found_from_the_tensors(shape: Shape) -> None:
    state = Generator.hollow(shape).state_dict()
    assert Shape.of_state(dict(reversed(state.items()))) == shape


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"widths": (4, 8, 16)}, "expected 3 halvings, got 2"),
        ({"widths": (4, 8, 16, 32, 64)}, "expected 3 halvings, got 4"),
        ({"widths": (4, 0, 16, 32), "local": 8}, "positive widths"),
        ({"blocks": 0}, "at least one block"),
        ({"local": 512}, "local and at least two global channels"),
        ({"local": 511}, "local and at least two global channels"),
        ({"local": 0}, "local and at least two global channels"),
    ],
)
def test_impossible_dimensions_are_refused(options: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Shape(**options)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 72), (40, 16)])
def test_the_published_form_is_spandrels(height: int, width: int) -> None:
    architecture = pytest.importorskip("spandrel.architectures.LaMa.__arch.LaMa")
    ratios = {"ratio_gin": 0.75, "ratio_gout": 0.75, "enable_lfu": False}
    start = {"ratio_gin": 0, "ratio_gout": 0, "enable_lfu": False}
    other = architecture.FFCResNetGenerator(
        4, 3, ngf=8, n_blocks=3, init_conv_kwargs=start, downsample_conv_kwargs=start, resnet_conv_kwargs=ratios
    )
    model = made_generator()
    other.load_state_dict(model.state_dict())
    picture = seen(height, width, torch.float32)
    with torch.no_grad():
        expected = other.eval().model(picture)
        assert expected.std() > 0.05
        assert relative(model(picture), expected) < 1e-6
        assert relative(Folded(model)(picture), expected) < 3e-6


def test_the_form_for_use_is_spandrels_at_full_width() -> None:
    lama = pytest.importorskip("spandrel.architectures.LaMa").LaMa(in_nc=4, out_nc=3)
    model = made_generator(Shape())
    for place in range(5, 23):  # as drawn, 18 blocks would end in numbers so large that the sigmoid hides all errors
        for name, tensor in model.model[str(place)].named_parameters():
            tensor *= 0.3 if tensor.ndim == 4 and "conv" in name else 1
    lama.model.load_state_dict(model.state_dict())
    picture = seen(64, 88, torch.float32)
    with torch.no_grad():
        expected = lama.eval().model.model(picture)
        assert expected.std() > 0.05
        assert 0.01 < expected.min() < expected.max() < 0.99
        assert relative(Folded(model)(picture), expected) < 1e-5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_form_for_use_equals_the_published_one(shape: Shape, dtype: torch.dtype, limit: float) -> None:
    model = made_generator(shape, dtype)
    fast = Folded(model)
    for size in [(16, 16), (24, 16), (40, 56)]:
        picture = seen(*size, dtype, shape.inputs, batch=2)
        with torch.no_grad():
            assert relative(fast(picture), model(picture)) < limit
            features = model.front(picture)
            assert relative(fast.front(picture), features) < limit
        gradients = []
        for network in (model, fast):
            leaf = features.clone().requires_grad_()
            network.rear(leaf).square().sum().backward()
            gradients.append(leaf.grad)
        assert relative(gradients[1], gradients[0]) < limit


@pytest.mark.parametrize("size", [(33, 34), (32, 32), (70, 36)], ids=str)
@pytest.mark.parametrize("channels", [(96, 104), (130, 96)], ids=str)
def test_convolutions_of_many_channels_are_the_plain_ones(size: tuple[int, int], channels: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels[0], *size, generator=draw).to(memory_format=torch.channels_last)
    weight = torch.randn(channels[1], channels[0], 3, 3, generator=draw)
    slope = torch.randn(2, channels[1], *size, generator=draw)
    memory = ffc_fast._Memory(torch.device("cpu"), keeps=False)
    found = ffc_fast._convolved(features, weight, memory), ffc_fast._convolved_back(slope, weight, memory)
    assert len(memory.strips) == 2
    leaf = features.double().requires_grad_()
    expected = torch.nn.functional.conv2d(reflected(leaf, 1), weight.double())
    [gradient] = torch.autograd.grad((expected * slope).sum(), leaf)
    assert relative(found[0], expected.detach()) < 3e-6
    assert relative(found[1], gradient) < 3e-6


def test_the_form_for_use_equals_the_published_one_with_many_channels() -> None:
    model = made_generator(Shape((4, 4, 4, 200), 98, 2))
    fast = Folded(model)
    picture = seen(264, 272, torch.float32, batch=2)
    with torch.no_grad():
        expected = model(picture)
        assert relative(fast(picture), expected) < 2e-5
        assert relative(fast(picture[1:]), expected[1:]) < 2e-5
    assert ffc_fast.MANY_PIXELS <= 33 * 34


def test_gradients_of_two_passes_do_not_mix() -> None:
    fast = Folded(made_generator(TINY, torch.float64))
    leaves = [fast.front(seen(24, 24).roll(turn, 3)).requires_grad_() for turn in (0, 9)]
    alone = []
    for leaf in leaves:
        alone.append(torch.autograd.grad(fast.rear(leaf).square().sum(), leaf)[0])
    passes = [fast.rear(leaf).square().sum() for leaf in leaves]
    for leaf, loss, expected in reversed(list(zip(leaves, passes, alone, strict=True))):
        assert torch.equal(torch.autograd.grad(loss, leaf)[0], expected)


def test_it_is_fixed_in_evaluation_mode_and_its_own() -> None:
    model = made_generator(TINY)
    fast = Folded(model)
    picture = seen(16, 16, torch.float32)
    with torch.inference_mode():
        before = fast(picture)
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert not any(module.training for module in fast.modules())
    assert not any(tensor.requires_grad for tensor in [*fast.parameters(), *fast.buffers()])
    assert torch.equal(fast(picture), before)
    assert fast(picture).is_contiguous()


def graph_bytes(network: Generator, features: Tensor) -> int:
    """What the graph of the rear keeps for gradients, without the network's own tensors."""
    fixed = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in fixed:
            found[tensor.data_ptr()] = max(found.get(tensor.data_ptr(), 0), tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.rear(features.clone().requires_grad_())
    return sum(found.values())


def test_gradients_keep_a_fraction_of_what_the_plain_graph_keeps() -> None:
    """How much less memory a whole pass takes is measured by scripts/bench.py inpaint."""
    model = made_generator(Shape((16, 32, 64, 128), 32, 18))
    features = model.front(seen(64, 64, torch.float32))
    drawn = Folded(model).rear(features.clone().requires_grad_())
    node = drawn.grad_fn
    while not hasattr(node, "memory"):
        node = node.next_functions[0][0]
    memory = node.memory
    assert len(memory.places) == 36 * 3 + 3
    kept = memory.next[1] + sum(map(len, memory.chunks[:-1])) + drawn.nbytes
    assert kept < graph_bytes(model, features) / 10


def test_without_gradients_nothing_is_kept_and_twice_back_is_the_same() -> None:
    fast = Folded(made_generator(TINY))
    with torch.no_grad():
        leaf = fast.front(seen(24, 24, torch.float32)).requires_grad_()
        assert not fast.rear(leaf).requires_grad
    drawn = fast.rear(leaf)
    once, twice = (torch.autograd.grad(drawn.sum(), leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)
