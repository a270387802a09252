from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from facefix import mask, parse
from facefix.errors import UsageError, WeightsInvalid, WeightsMissing


def test_both_kinds_name_the_same_classes() -> None:
    first, second = parse.KINDS.values()
    assert sorted(first.classes) == sorted(second.classes)
    assert len(first.classes) == 19
    for kind in parse.KINDS.values():
        assert 0 not in kind.numbers(parse.FACE)
        assert kind.classes[0] == "background"
        hidden = kind.numbers(["hair", "hat", "cloth", "neck"])
        assert not hidden & kind.numbers(parse.FACE)


class Bright(nn.Module):
    """Scores skin by brightness and background by a fixed 0, as a real parser gives them."""

    def forward(self, pictures: Tensor) -> Tensor:
        self.seen = pictures
        scores = torch.zeros(1, 19, *pictures.shape[2:])
        scores[:, 1] = pictures.mean(1)
        return scores


@pytest.mark.parametrize("size", [256, 512, 1024])
@pytest.mark.parametrize("name", sorted(parse.KINDS))
def test_a_parser_normalises_resizes_and_labels(name: str, size: int) -> None:
    kind, network = parse.KINDS[name], Bright()
    crop = np.zeros((size, size, 3), np.float32)
    crop[:, size // 2 :] = (0.9, 0.8, 0.7)
    labels = parse.Parser(network, kind, torch.device("cpu"))(crop)
    assert labels.shape == (512, 512)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1}
    assert labels[:, :250].max() == 0
    assert labels[:, 262:].min() == 1
    expected = (np.array([0.9, 0.8, 0.7]) - kind.mean) / kind.std
    np.testing.assert_allclose(network.seen[0, :, 100, 500].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(parse.KINDS))
def test_facexlibs_networks_load(name: str, tmp_path: Path) -> None:
    """The real architecture with random weights."""
    parser = made(name, tmp_path / "made.pth")
    assert parser.kind is parse.KINDS[name]
    assert len(parser.face_classes) == len(parse.FACE)


@pytest.mark.parametrize("name", sorted(parse.KINDS))
def test_facexlibs_networks_give_labels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights, and a quarter of the size: the labels mean nothing, but every step to a mask is gone."""
    monkeypatch.setattr(parse, "SIZE", 128)
    parser = made(name, tmp_path / "made.pth")
    labels = parser(np.random.default_rng(0).random((128, 128, 3), np.float32))
    assert labels.shape == (128, 128)
    assert labels.max() < 19
    assert mask.label_mask(labels, parser.face_classes, 64).shape == (64, 64)


def made(name: str, path: Path) -> parse.Parser:
    """The parser of a file with random weights, written to that path."""
    torch.manual_seed(0)
    torch.save(parse._network(name).state_dict(), path)
    return parse.load(name, path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"encoder.0.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsInvalid, match="expected bisenet"):
        parse.load("bisenet", path)
    with pytest.raises(WeightsMissing):
        parse.load("parsenet", tmp_path / "nothing.pth")
    with pytest.raises(UsageError, match="parsenet or bisenet"):
        parse.load("segformer", path)
