"""What every inpainting engine takes and gives, and which engines there are.

An engine only invents pixels. Everything around it is the caller's and stands in `compose`: dilation and feather of
the mask, which part of the photo an engine sees, contrast, grain, the frame that outpainting adds, and the promise that
known pixels keep their bits.

Importing this package loads neither torch nor OpenCV; the engines' modules do, when they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from facefix.types import Mask, Pixels

Progress = Callable[[int, int], None]
"""Called with the engine's own steps: how many are done, and how many there are."""


class Engine(Protocol):
    """Something that fills a hole."""

    @property
    def name(self) -> str:
        """The engine and its weights in a few words, for reports."""

    @property
    def takes_prompt(self) -> bool:
        """Whether words steer what it draws."""

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        """The scene with its hole filled: (h, w, 3) float32 sRGB, 0..1.

        Args:
            scene: (h, w, 3) float32 sRGB, 0..1, of any size from 1 px; engines pad and resize by themselves. What it
                shows inside the hole means nothing to most engines; those that start from it say so.
            hole: (h, w) float32, 1 to be filled, 0 known, nothing between. It has at least one pixel of each.
            seed: equal seeds give equal pixels on one machine.
            progress: called with the engine's own steps.

        Returns:
            The same size. What it shows outside the hole is not used.

        Raises:
            DeviceError: the memory ran out, and smaller parts did not help.
        """
