"""Trains facefix-lite on pictures that `lite_data` makes and `degrade` damages, on a CPU or a CUDA device.

    python scripts/train_lite.py --work build/lite

makes a pool of clean pictures (once), trains for a number of steps or until a time is over, and writes into the work
folder `lite.safetensors` (float16; of all averages of the weights the one that was best on free photos that are not
trained on), `last.safetensors` (the latest average), `sheet.png` (those photos damaged, restored, clean) and `state.pt`
(everything, to go on from). Called again with the same folder it goes on; `--fresh-schedule` starts a new learning-rate
curve from there.

The pieces are small and many first, then larger and fewer: with 16 of 64 px a step the network learns faster, but only
in 128 px it meets whole pictures at the coarser levels. How the network begins, and why 128 px are enough, stands in
`lite_network`.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from degrade import LEVELS, Level, Tone, degrade, psnr, ssim, toned
from lite_data import VALIDATION_PHOTOS, clean_pool, free_photos, photo_cut
from lite_network import SIZE, Muon, folded_forward, identity_network, likeness_of, loss_of
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facefix.gpen import GPEN
from facefix.types import Pixels

SHARD = 100
PHOTO_SHARE = 0.5
LIKENESS = 1.0
TOP = 1.1
"""Above the highest likeness: the nearer to it, the more the lightly damaged pictures count."""
UNDAMAGED = 0.15
TONES: dict[Tone, float] = {"colour": 0.55, "mono": 0.2, "sepia": 0.1, "faded": 0.15}

VALIDATION_BOXES = (
    (0, 0, 96, 256),
    (0, 200, 60, 256),
    (0, 256, 256, 256),
    (0, 0, 0, 512),
    (0, 40, 130, 180),
    (1, 0, 100, 300),
    (1, 20, 60, 200),
    (1, 44, 150, 256),
    (2, 0, 0, 512),
    (2, 40, 120, 256),
)
"""Photo, top, left and side of what the training is watched with."""

Batch = tuple[Tensor, Tensor, Tensor]


def random_level(rng: np.random.Generator) -> Level:
    """Damage somewhere between light and heavy, each kind of it now and then (nearly) absent."""
    names = ["light", "medium", "heavy"]
    a = LEVELS[str(rng.choice(names, p=[0.4, 0.28, 0.32]))]
    blur = a.blur_px if rng.random() < 0.85 else (0.1, 0.3)
    shrink = a.shrink if rng.random() < 0.75 else (1.0, 1.0)
    noise = a.noise if rng.random() < 0.85 else (0.0, 1.5)
    # Without a JPEG file, noise keeps its finest colours.
    jpeg = a.jpeg if rng.random() < 0.75 else (100.0, 100.0)
    # No scratches: a network that has learned to take them off takes braids, creases and glints off, too.
    return Level(blur, shrink, noise, jpeg, 0.0, a.halftone)


def as_photographed(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """The clean picture, most often softer and flatter.

    Where all targets are sharper than photos are, the network takes every softness for damage and sharpens what was
    good: after a thousand steps, real faces came out worse and worse.
    """
    if rng.random() < 0.6:
        clean = np.asarray(cv2.GaussianBlur(clean, (0, 0), float(rng.uniform(0.3, 1.3))), np.float32)
    if rng.random() < 0.4:
        middle = clean.mean(axis=(0, 1))
        clean = middle + (clean - middle) * np.float32(rng.uniform(0.3, 1))
    return clean


def damaged_pair(clean: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels, bool]:
    """(input, target, whether it is a grey photo) for training."""
    tone: Tone = str(rng.choice(list(TONES), p=list(TONES.values())))  # type: ignore[assignment]
    if rng.random() < 0.5:
        clean = clean[:, ::-1]
    clean = as_photographed(clean, rng)
    if rng.random() < UNDAMAGED:
        target = np.clip(toned(clean, tone, rng), 0, 1)
        return np.rint(target * np.float32(255)) / np.float32(255), target, tone == "mono"
    source, target = degrade(clean, random_level(rng), rng, tone)
    return source, target, tone == "mono"


def as_tensor(pictures: Sequence[Pixels]) -> Tensor:
    """(h, w, 3) pictures in 0..1 -> (B, 3, h, w) in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))) * 2 - 1


def as_pixels(batch: Tensor) -> list[Pixels]:
    """(B, 3, h, w) in -1..1 -> (h, w, 3) pictures, clipped to 0..1."""
    return list((batch.detach().float().cpu().clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy())


def make_batch(
    pool: NDArray[np.uint8], seed: int, step: int, count: int, side: int, photos: Sequence[Pixels] = ()
) -> Batch:
    """(input, target, grey) of one step, pictures of `side` px: the same for the same seed and step.

    Made pictures alone would teach that fine texture is noise: some pieces are cut from photos, each at a new scale.
    """
    rng = np.random.default_rng([seed, step])
    # Damage is done to a slightly larger piece, so that the JPEG grid does not always begin at the corner.
    reach = min(side + 8, pool.shape[1])
    sources, targets, grays = [], [], []
    for picture in rng.integers(0, len(pool), count):
        if len(photos) and rng.random() < PHOTO_SHARE:
            piece = photo_cut(rng, reach, photos)
        else:
            y, x = rng.integers(0, pool.shape[1] - reach + 1, 2)
            piece = pool[picture, y : y + reach, x : x + reach].astype(np.float32) / np.float32(255)
        source, target, gray = damaged_pair(piece, rng)
        y, x = rng.integers(0, reach - side + 1, 2)
        sources.append(source[y : y + side, x : x + side])
        targets.append(target[y : y + side, x : x + side])
        grays.append(gray)
    return as_tensor(sources), as_tensor(targets), torch.tensor(grays, dtype=torch.float32)


def batches(
    pool: NDArray[np.uint8], seed: int, first: int, pieces: Callable[[int], tuple[int, int]]
) -> Iterator[Batch]:
    """Batches from step `first` on, the next one made while the present one is trained on.

    `pieces` gives how many pieces a step takes, and how many pixels long their sides are.
    """
    photos = free_photos()
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(make_batch, pool, seed, first, *pieces(first), photos)
        step = first
        while True:
            step += 1
            ready = coming.result()
            coming = worker.submit(make_batch, pool, seed, step, *pieces(step), photos)
            yield ready


def validation_pairs() -> list[tuple[str, Pixels, Pixels]]:
    """(level, damaged, clean): ten pieces of free photos that training never sees, at every level.

    Of made pictures where there are no photos.
    """
    photos = free_photos(tuple(VALIDATION_PHOTOS))
    if len(photos) == len(VALIDATION_PHOTOS):
        pieces = [photos[number][y : y + side, x : x + side] for number, y, x, side in VALIDATION_BOXES]
        ways = [cv2.INTER_AREA if len(p) >= SIZE else cv2.INTER_CUBIC for p in pieces]
        sized = [cv2.resize(p, (SIZE, SIZE), interpolation=way) for p, way in zip(pieces, ways, strict=True)]
        clean = [np.asarray(np.clip(p, 0, 1), np.float32) for p in sized]
    else:
        clean = list(clean_pool(7, len(VALIDATION_BOXES), SIZE).astype(np.float32) / np.float32(255))
    tones: list[Tone] = ["colour", "colour", "colour", "mono", "faded", "colour", "sepia", "colour", "colour", "mono"]
    return [
        (name, *degrade(picture, level, np.random.default_rng([99, row, i]), tones[i]))
        for row, (name, level) in enumerate(LEVELS.items())
        for i, picture in enumerate(clean)
    ]


@torch.no_grad()
def validate(model: GPEN, pairs: Sequence[tuple[str, Pixels, Pixels]], sheet: Path) -> tuple[float, str]:
    """How good the model is (the negative of the loss, but for its edges), and a line with the mean gain per level.

    Writes a sheet of damaged, restored and clean.
    """
    model.eval()
    device = next(model.parameters()).device
    restored = [as_pixels(model(as_tensor([source]).to(device)))[0] for _, source, _ in pairs]
    model.train()
    words, scores = [], []
    for r, (_, _, t) in zip(restored, pairs, strict=True):
        scores.append(psnr(r, t) * math.log(10) / 10 - LIKENESS * math.log(TOP - ssim(r, t)))
    for level in LEVELS:
        rows = [(r, s, t) for r, (name, s, t) in zip(restored, pairs, strict=True) if name == level]
        gain = np.mean([psnr(r, t) - psnr(s, t) for r, s, t in rows])
        likeness = np.mean([ssim(r, t) - ssim(s, t) for r, s, t in rows])
        words.append(f"{level} {gain:+.2f} dB {likeness:+.4f}")
    rows_of = [np.hstack([s, r, t]) for r, (_, s, t) in zip(restored, pairs, strict=True)]
    cv2.imwrite(str(sheet), np.rint(np.vstack(rows_of)[..., ::-1] * 255).astype(np.uint8))
    return float(np.mean(scores)), " | ".join([*words, f"score {np.mean(scores):.4f}"])


def load_pool(folder: Path, pictures: int, seed: int, workers: int) -> NDArray[np.uint8]:
    """(pictures, size, size, 3) uint8 clean pictures, made in shards by `workers` processes where they are missing.

    A short shard is the beginning of the whole one, so that a pool can grow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        folder / f"{shard:03d}.npy": min(SHARD, pictures - shard * SHARD) for shard in range(-(-pictures // SHARD))
    }
    missing = [f for f, count in wanted.items() if not f.exists() or len(np.load(f, mmap_mode="r")) < count]
    # Spawned, not forked: a fork would inherit the locks of torch's and OpenCV's threads, but not the threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as makers:
        seeds, counts = [seed + int(file.stem) for file in missing], [wanted[file] for file in missing]
        made = makers.map(clean_pool, seeds, counts, [SIZE] * len(missing))
        for done, (file, pool) in enumerate(zip(missing, made, strict=True), 1):
            np.save(file, pool)
            print(f"made {done} of {len(missing)} shards of clean pictures", flush=True)
    return np.concatenate([np.load(file) for file in wanted])[:pictures]


def export(average: nn.Module, file: Path, facts: dict[str, str]) -> None:
    """Writes the averaged weights as float16 safetensors."""
    tensors = {name: value.detach().half().cpu().contiguous() for name, value in average.state_dict().items()}
    save_file(tensors, file, {"format": "pt", "name": "facefix-lite-256", "licence": "Apache-2.0", **facts})


class Trainer:
    """The network, its running average and its optimiser, with what is needed to stop and go on."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.model = identity_network(options.seed).to(device)
        self.average = identity_network(options.seed).to(device)
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.trained = [p for _, p in named]
        last, next_to_last, *_ = sorted((n for n, _ in named if ".to_rgb" in n), reverse=True)
        # The coarser the level, the larger the area that a to_rgb weight shifts.
        factors = {n: 1.0 if n == last or ".to_rgb" not in n else 0.3 if n == next_to_last else 0.1 for n, _ in named}
        filters = [n for n, p in named if p.ndim >= 4 and p.shape[-1] == 3]
        rest = [{"params": [p], "factor": factors[n]} for n, p in named if n not in filters]
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon([p for n, p in named if n in filters], options.rate * 2),
            torch.optim.Adam(rest, lr=options.rate, betas=(0.9, 0.99)),
        ]
        self.rates = [[options.rate * 2], [options.rate * factors[n] for n, _ in named if n not in filters]]
        self.step, self.spent, self.best = 0, 0.0, -math.inf
        self.first_step, self.first_spent = 0, 0.0
        self.state_file = options.work / "state.pt"
        if options.begin is not None and not self.state_file.exists():
            for network in (self.model, self.average):
                network.load_state_dict({name: value.float() for name, value in load_file(options.begin).items()})
        if self.state_file.exists():
            state = torch.load(self.state_file, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.step, self.spent, self.best = state["step"], state["spent"], state["best"]
            self.first_step, self.first_spent = state["first_step"], state["first_spent"]
            if options.fresh_schedule:
                self.first_step, self.first_spent = self.step, self.spent

    @property
    def done(self) -> float:
        """The share of this learning-rate curve that lies behind, by steps or by time, whichever is further."""
        by_steps = (self.step - self.first_step) / self.options.steps
        return max(by_steps, (self.spent - self.first_spent) / self.options.seconds)

    def pieces(self, step: int) -> tuple[int, int]:
        """How many pieces this step takes, and their side in px: each side for an equal share of the curve's steps."""
        sides = self.options.sides
        side = sides[min((step - self.first_step) * len(sides) // self.options.steps, len(sides) - 1)]
        return max(1, self.options.batch * 128**2 // side**2), side

    def save(self) -> None:
        """Writes the state, whole or not at all."""
        state = {"model": self.model.state_dict(), "average": self.average.state_dict()}
        numbers = {
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "spent": self.spent,
            "best": self.best,
            "first_step": self.first_step,
            "first_spent": self.first_spent,
        }
        part = self.state_file.with_suffix(".part")
        torch.save(state | numbers, part)
        part.replace(self.state_file)

    def report(self, pairs: Sequence[tuple[str, Pixels, Pixels]], words: str) -> None:
        """Prints a progress line; keeps the average if none before was better on the validation photos."""
        score, line = validate(self.average, pairs, self.options.work / "sheet.png")
        print(f"{words}step {self.step} {self.spent:.0f} s | {line}", flush=True)
        facts = {"steps": str(self.step), "seconds": str(round(self.spent))}
        export(self.average, self.options.work / "last.safetensors", facts)
        if score > self.best:
            self.best = score
            export(self.average, self.options.work / "lite.safetensors", facts)
        self.save()

    def learn(self, batch: Batch) -> float:
        """One step; the loss."""
        share = min(1, (self.step + 1) / 50) * (1 + math.cos(math.pi * min(1, self.done))) / 2
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * share
        source, target, gray = (part.to(self.device) for part in batch)
        source = source.contiguous(memory_format=torch.channels_last)
        half = self.options.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            restored = folded_forward(self.model, source)
        loss = loss_of(restored, target, gray) + LIKENESS * torch.log(TOP - likeness_of(restored, target)).mean()
        self.model.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        keep = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        return float(loss.detach())

    def run(self, pool: NDArray[np.uint8]) -> None:
        """Trains until the time is over, with a progress line, a sheet and a saved state every so often."""
        pairs = validation_pairs()
        losses: list[float] = []
        reported, began = self.spent, time.monotonic()
        for batch in batches(pool, self.options.seed, self.step, self.pieces):
            if self.done >= 1:
                break
            losses.append(self.learn(batch))
            now = time.monotonic()
            self.spent, began = self.spent + now - began, now
            if self.spent - reported >= self.options.report:
                reported = self.spent
                self.report(pairs, f"loss {np.mean(losses):.3f} ")
                losses.clear()
        self.report(pairs, "done: ")


def main(arguments: Sequence[str]) -> None:
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(description="Train facefix-lite from pictures that this program makes.")
    parser.add_argument("--work", type=Path, required=True, help="folder for pool, state, weights and sheet")
    parser.add_argument("--begin", type=Path, help="weight file of an earlier training to go on from")
    parser.add_argument("--steps", type=int, default=11000, help="steps of this learning-rate curve")
    parser.add_argument("--seconds", type=float, default=math.inf, help="time after which the curve is over, too")
    parser.add_argument("--pictures", type=int, default=1800, help="clean pictures in the pool")
    parser.add_argument("--batch", type=int, default=4, help="pieces of 128 px a step, or as many pixels in others")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[64, 128], help="sides of the pieces in turn, px: 64, 128, 192 or 256"
    )
    parser.add_argument("--rate", type=float, default=0.01, help="highest learning rate; filters take twice that")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of the convolutions")
    parser.add_argument("--seed", type=int, default=1000, help="seed of data, damage and first weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, and processes that make pictures")
    parser.add_argument("--report", type=float, default=60, help="seconds between progress lines")
    parser.add_argument(
        "--fresh-schedule", action="store_true", help="go on from the state with a new learning-rate curve"
    )
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    torch.set_num_threads(options.threads)
    pool = load_pool(options.work / "pool", options.pictures, options.seed, options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    Trainer(options, device).run(pool)


if __name__ == "__main__":
    main(sys.argv[1:])
