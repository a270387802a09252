"""Which pixel of a crop is skin, hair, hat or background: facexlib's ParseNet and BiSeNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from facefix.errors import UsageError, WeightsInvalid
from facefix.types import Labels, Pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SIZE = 512
"""The side of the crops that both networks were trained with, px."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What one parser's numbers mean, and what it wants to be given.

    `classes` names its 19 outputs in order; `mean` and `std` are for RGB in 0..1.
    """

    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def numbers(self, names: Sequence[str]) -> frozenset[int]:
        """The numbers of the named classes."""
        return frozenset(self.classes.index(name) for name in names)


KINDS = MappingProxyType(
    {
        "parsenet": Kind(
            (
                "background", "skin", "nose", "glasses", "left eye", "right eye", "left brow", "right brow", "left ear",
                "right ear", "mouth", "upper lip", "lower lip", "hair", "hat", "ear-ring", "necklace", "neck", "cloth",
            ),
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
        ),
        "bisenet": Kind(
            (
                "background", "skin", "left brow", "right brow", "left eye", "right eye", "glasses", "left ear",
                "right ear", "ear-ring", "nose", "mouth", "upper lip", "lower lip", "neck", "necklace", "cloth", "hair",
                "hat",
            ),
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
        ),
    }
)  # fmt: skip
"""By name. Class orders as facexlib 0.3 uses them."""

FACE = (
    "skin", "nose", "glasses", "left eye", "right eye", "left brow", "right brow", "left ear", "right ear", "mouth",
    "upper lip", "lower lip",
)  # fmt: skip
"""The classes that a restored face replaces; hair, hats, jewellery, neck and clothes stay the photo's own."""


class Parser:
    """Labels crops; made by `load`.

    Args:
        network: (1, 3, 512, 512) normalised -> 19 scores a pixel, (1, 19, 512, 512).
        kind: what its numbers mean.
        device: where it computes.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], kind: Kind, device: torch.device) -> None:
        self._network = network
        self.kind = kind
        self.device = device

    @property
    def face_classes(self) -> frozenset[int]:
        """The numbers of the classes in `FACE`."""
        return self.kind.numbers(FACE)

    def __call__(self, pixels: Pixels) -> Labels:
        """The class of each pixel of the crop, (512, 512) uint8.

        Args:
            pixels: (S, S, 3) float32, 0..1; brought to 512 px first.
        """
        fitted = pixels
        if pixels.shape[0] != SIZE:
            flags = cv2.INTER_AREA if pixels.shape[0] > SIZE else cv2.INTER_CUBIC
            fitted = np.asarray(cv2.resize(pixels, (SIZE, SIZE), interpolation=flags), np.float32)
        mean, std = np.array(self.kind.mean, np.float32), np.array(self.kind.std, np.float32)
        normal = np.asarray((fitted - mean) / std, np.float32)
        import torch

        from facefix import runtime

        with torch.inference_mode():
            scores = self._network(runtime.to_batch([normal], mean=0, std=1).to(self.device))
        return np.asarray(scores[0].argmax(0).to("cpu", torch.uint8).numpy(), np.uint8)


def load(name: str, path: Path, *, device: str | torch.device = "cpu") -> Parser:
    """The named parser with the file's weights.

    Args:
        name: parsenet or bisenet.
        path: facexlib's parsing_parsenet.pth or parsing_bisenet.pth.
        device: as in `runtime.choose_device`.

    Raises:
        UsageError: another name.
        WeightsInvalid: the file holds something else.
        DeviceError: no such device here.
    """
    if name not in KINDS:
        raise UsageError(f"parser: expected {' or '.join(KINDS)}, got {name!r}; choose one of them")
    import torch

    from facefix import networks, runtime

    where = runtime.choose_device(device)
    network = _network(name)
    state = networks.read_state(path)
    wanted = network.state_dict()
    strange = sorted(wanted.keys() ^ state.keys()) or sorted(
        key for key in wanted if wanted[key].shape != state[key].shape
    )
    if strange:
        raise WeightsInvalid(path, f"expected {name}, got another network: {', '.join(strange[:3])} do not fit")
    network.load_state_dict(state)
    network.eval().requires_grad_(False).to(where).to(memory_format=torch.channels_last)  # a fifth faster
    return Parser(lambda pictures: network(pictures)[0], KINDS[name], where)


def _network(name: str) -> nn.Module:
    """The untrained network, without facexlib's own loader, which would download."""
    made: Any
    if name == "parsenet":
        from facexlib.parsing.parsenet import ParseNet  # type: ignore[import-untyped]

        made = ParseNet(in_size=SIZE, out_size=SIZE, parsing_ch=19)
    else:
        from facexlib.parsing.bisenet import BiSeNet  # type: ignore[import-untyped]

        made = BiSeNet(num_class=19)
    module: nn.Module = made
    return module
