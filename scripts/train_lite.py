"""Trains facefix-lite on pictures that `lite_data` makes and `degrade` damages, on a CPU or a CUDA device.

    python scripts/train_lite.py --work build/lite --seconds 5400

makes a pool of clean pictures (once), trains until the time is over, and writes `lite.safetensors` (float16, averaged
weights), `sheet.png` (validation: damaged, restored, clean) and `state.pt` (everything, to go on from) into the work
folder. Called again with the same folder it goes on; `--fresh-schedule` starts a new learning-rate curve from there.

The network begins as the identity: the pointwise first encoder layer carries +x and -x of each colour past all the
convolutions to the last to_rgb, where their difference is x exactly, because leaky(x) - leaky(-x) is linear. Everything
else starts at zero weight in the picture, so training learns a correction only.

The style is constant: modulation weights are zero and stay so. A cleaner has no use for one code for the whole face,
and without it the network sees local damage only, so that it can be trained on crops of 128 px, four times as many
for the same work. `folded_forward` is the network's own forward in that case, with fewer passes over memory.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from degrade import LEVELS, Level, Tone, degrade, psnr, ssim, toned
from lite_data import VALIDATION_PHOTOS, clean_pool, free_photos
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from facefix.gpen import GAIN, GPEN, SLOPE, StyledConv, ToRGB, activate, blurred, doubled
from facefix.types import Pixels

SIZE = 256
CHANNELS = (64, 64, 64, 64, 64, 32, 16)
STYLE_DIM, N_MLP = 16, 1
SHARD = 100
UNDAMAGED = 0.12
TONES: dict[Tone, float] = {"colour": 0.55, "mono": 0.2, "sepia": 0.1, "faded": 0.15}

Batch = tuple[Tensor, Tensor, Tensor]


def identity_network(seed: int) -> GPEN:
    """A new lite network that gives its input back (to float rounding), ready to learn a correction."""
    torch.manual_seed(seed)
    model = GPEN(SIZE, CHANNELS, style_dim=STYLE_DIM, n_mlp=N_MLP)
    model.generator.input.input.data[:] = model.generator.input.input.data[:, :, :1, :1]
    for name, parameter in model.named_parameters():
        if ".modulation." in name or ".style." in name or name.startswith("final_linear"):
            parameter.requires_grad_(False)
        if name.endswith("modulation.weight") or (".to_rgb" in name and name.endswith("conv.weight")):
            nn.init.zeros_(parameter)
        elif name.endswith("noise.weight"):
            nn.init.ones_(parameter)
    first = model.get_parameter("ecd0.0.0.weight").data
    last = model.get_parameter(f"generator.to_rgbs.{len(CHANNELS) - 2}.conv.weight").data
    width = CHANNELS[-1]
    # Two activations lie on the way (encoder, styled convolution): the slope of the difference of a +x, -x pair.
    slope = GAIN**2 * (1 + SLOPE**2)
    first[:6] = 0
    for colour in range(3):
        first[2 * colour, colour] = math.sqrt(3)
        first[2 * colour + 1, colour] = -math.sqrt(3)
        last[0, colour, width + 2 * colour] = math.sqrt(2 * width) / slope
        last[0, colour, width + 2 * colour + 1] = -math.sqrt(2 * width) / slope
    return model


def folded_forward(model: GPEN, pictures: Tensor) -> Tensor:
    """What the model gives for (B, 3, h, w) pictures, h and w multiples of 64, where its modulation weights are zero.

    The scales are then the same for every picture and go into the weights. For 256 px it equals the model's forward;
    for less, the constant input is cut to the same share of its 4 x 4.
    """

    def folded(layer: StyledConv) -> Tensor:
        weight = layer.conv.weight[0] * layer.conv.modulation.bias[None, :, None, None]
        return weight * torch.rsqrt(weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8)

    def styled(layer: StyledConv, values: Tensor, beside: Tensor) -> Tensor:
        if layer.conv.doubles:
            values = F.conv_transpose2d(values, folded(layer).transpose(0, 1), stride=2)
            values = blurred(values, layer.conv.blur.kernel, padding=1)
        else:
            values = F.conv2d(values, folded(layer), padding=1)
        return activate(torch.cat([values, layer.noise.weight * beside], dim=1), layer.activate.bias)

    features = [pictures]
    for step in range(model.size.bit_length() - 2):
        features.append(model.get_submodule(f"ecd{step}")(features[-1]))
    features = features[:0:-1]
    decoder = model.generator
    layers = [layer for layer in decoder.convs if isinstance(layer, StyledConv)]
    to_rgbs = [decoder.to_rgb1, *(layer for layer in decoder.to_rgbs if isinstance(layer, ToRGB))]
    height, width = features[0].shape[2:]
    values = decoder.input.input[:, :, :height, :width].expand(len(pictures), -1, -1, -1)
    values = styled(decoder.conv1, values, features[0])
    result: Tensor | None = None
    for level, to_rgb in enumerate(to_rgbs):
        if level:
            values = styled(layers[2 * level - 2], values, features[level])
            values = styled(layers[2 * level - 1], values, features[level])
        weight = to_rgb.conv.weight[0] * to_rgb.conv.modulation.bias[None, :, None, None]
        added = F.conv2d(values, weight / math.sqrt(weight.shape[1])) + to_rgb.bias
        result = added if result is None else added + doubled(result, to_rgb.upsample.kernel)
    assert result is not None
    return result


def random_level(rng: np.random.Generator) -> Level:
    """Damage somewhere between light and heavy, each kind of it now and then (nearly) absent."""
    names = ["light", "medium", "heavy"]
    a = LEVELS[str(rng.choice(names, p=[0.3, 0.45, 0.25]))]
    blur = a.blur_px if rng.random() < 0.85 else (0.1, 0.3)
    shrink = a.shrink if rng.random() < 0.75 else (1.0, 1.0)
    noise = a.noise if rng.random() < 0.85 else (0.0, 1.5)
    jpeg = a.jpeg if rng.random() < 0.85 else (92.0, 100.0)
    return Level(blur, shrink, noise, jpeg, a.scars, a.halftone)


def damaged_pair(clean: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels, bool]:
    """(input, target, whether it is a grey photo) for training."""
    tone: Tone = str(rng.choice(list(TONES), p=list(TONES.values())))  # type: ignore[assignment]
    if rng.random() < 0.5:
        clean = clean[:, ::-1]
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


def make_batch(pool: NDArray[np.uint8], seed: int, step: int, count: int, side: int) -> Batch:
    """(input, target, grey) of one step, pictures of `side` px: the same for the same seed and step."""
    rng = np.random.default_rng([seed, step])
    # Damage is done to a slightly larger piece, so that the JPEG grid does not always begin at the corner.
    reach = min(side + 8, pool.shape[1])
    sources, targets, grays = [], [], []
    for picture in rng.integers(0, len(pool), count):
        y, x = rng.integers(0, pool.shape[1] - reach + 1, 2)
        piece = pool[picture, y : y + reach, x : x + reach].astype(np.float32) / np.float32(255)
        source, target, gray = damaged_pair(piece, rng)
        y, x = rng.integers(0, reach - side + 1, 2)
        sources.append(source[y : y + side, x : x + side])
        targets.append(target[y : y + side, x : x + side])
        grays.append(gray)
    return as_tensor(sources), as_tensor(targets), torch.tensor(grays, dtype=torch.float32)


def batches(pool: NDArray[np.uint8], seed: int, first: int, count: int, side: int) -> Iterator[Batch]:
    """Batches from step `first` on, the next one made while the present one is trained on."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(make_batch, pool, seed, first, count, side)
        step = first
        while True:
            step += 1
            ready = coming.result()
            coming = worker.submit(make_batch, pool, seed, step, count, side)
            yield ready


def loss_of(restored: Tensor, target: Tensor, gray: Tensor) -> Tensor:
    """The mean over pictures of the logarithm of the squared error, edges and the colour of grey photos counted extra.

    The logarithm makes a lightly damaged picture count as much as a ruined one: it is PSNR itself, up to a factor.
    """
    error = restored - target
    squared = error.square().mean(dim=(1, 2, 3))
    edges = error.diff(dim=2).square().mean(dim=(1, 2, 3)) + error.diff(dim=3).square().mean(dim=(1, 2, 3))
    chroma = (restored - restored.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2, 3)) * gray
    return torch.log(squared + 0.25 * edges + 4 * chroma + 2e-4).mean()


def validation_pairs() -> list[tuple[str, Pixels, Pixels]]:
    """(level, damaged, clean) of free photos that training never sees, or of made pictures where there are none."""
    photos = free_photos(tuple(VALIDATION_PHOTOS))
    if len(photos) == len(VALIDATION_PHOTOS):
        astronaut, cat = photos
        boxes = [(astronaut, 0, 96, 256), (astronaut, 200, 60, 256), (cat, 0, 100, 300), (astronaut, 0, 0, 512)]
        pieces = [p[y : y + side, x : x + side] for p, y, x, side in boxes]
        reduced = [cv2.resize(p, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for p in pieces]
        clean = [np.asarray(p, np.float32) for p in reduced]
    else:
        clean = list(clean_pool(7, 4, SIZE).astype(np.float32) / np.float32(255))
    return [
        (name, *degrade(picture, level, np.random.default_rng([99, i]), "mono" if i == 3 else "colour"))
        for name, level in LEVELS.items()
        for i, picture in enumerate(clean)
    ]


@torch.no_grad()
def validate(model: GPEN, pairs: Sequence[tuple[str, Pixels, Pixels]], sheet: Path | None = None) -> str:
    """A line with the mean gain in PSNR and SSIM per level; writes a sheet of damaged, restored and clean."""
    model.eval()
    device = next(model.parameters()).device
    restored = [as_pixels(model(as_tensor([source]).to(device)))[0] for _, source, _ in pairs]
    model.train()
    words = []
    for level in LEVELS:
        rows = [(r, s, t) for r, (name, s, t) in zip(restored, pairs, strict=True) if name == level]
        gain = np.mean([psnr(r, t) - psnr(s, t) for r, s, t in rows])
        likeness = np.mean([ssim(r, t) - ssim(s, t) for r, s, t in rows])
        words.append(f"{level} {gain:+.2f} dB {likeness:+.4f}")
    if sheet is not None:
        rows_of = [np.hstack([s, r, t]) for r, (_, s, t) in zip(restored, pairs, strict=True)]
        picture = np.rint(np.vstack(rows_of)[..., ::-1] * 255).astype(np.uint8)
        cv2.imwrite(str(sheet), picture)
    return " | ".join(words)


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
        # A correction is a hundredth of what the features are: to_rgb needs finer steps than the convolutions.
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.trained = [p for _, p in named]
        groups = [
            {"params": [p for n, p in named if ".to_rgb" not in n], "factor": 1.0},
            {"params": [p for n, p in named if ".to_rgb" in n], "factor": 0.1},
        ]
        self.optimiser = torch.optim.Adam(groups, lr=options.rate, betas=(0.9, 0.99))
        self.step, self.spent, self.offset = 0, 0.0, 0.0
        self.state_file = options.work / "state.pt"
        if self.state_file.exists():
            state = torch.load(self.state_file, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.spent, self.offset = state["step"], state["spent"], state["offset"]
            if options.fresh_schedule:
                self.offset = self.spent

    def save(self) -> None:
        """Writes the state (whole or not at all) and the float16 file."""
        state = {"model": self.model.state_dict(), "average": self.average.state_dict()}
        facts = {"steps": str(self.step), "seconds": str(round(self.spent))}
        numbers = {
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent": self.spent,
            "offset": self.offset,
        }
        part = self.state_file.with_suffix(".part")
        torch.save(state | numbers, part)
        part.replace(self.state_file)
        export(self.average, self.options.work / "lite.safetensors", facts)

    def learn(self, batch: Batch) -> float:
        """One step; the loss."""
        done = (self.spent - self.offset) / self.options.seconds
        rate = (
            self.options.rate
            * min(1, (self.step + 1) / 50)
            * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1, done))) / 2)
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        source, target, gray = (part.to(self.device) for part in batch)
        loss = loss_of(folded_forward(self.model, source), target, gray)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(0.997, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        return float(loss.detach())

    def run(self, pool: NDArray[np.uint8]) -> None:
        """Trains until the time is over, with a progress line, a sheet and a saved state every so often."""
        pairs = validation_pairs()
        losses: list[float] = []
        reported = self.spent
        for batch in batches(pool, self.options.seed, self.step, self.options.batch, self.options.side):
            if self.spent - self.offset >= self.options.seconds:
                break
            began = time.monotonic()
            losses.append(self.learn(batch))
            self.spent += time.monotonic() - began
            if self.spent - reported >= self.options.report:
                reported = self.spent
                line = validate(self.average, pairs, self.options.work / "sheet.png")
                print(f"step {self.step} {self.spent:.0f} s loss {np.mean(losses):.3f} | {line}", flush=True)
                losses.clear()
                self.save()
        self.save()
        line = validate(self.average, pairs, self.options.work / "sheet.png")
        print(f"done: step {self.step} {self.spent:.0f} s | {line}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(description="Train facefix-lite from pictures that this program makes.")
    parser.add_argument("--work", type=Path, required=True, help="folder for pool, state, weights and sheet")
    parser.add_argument("--seconds", type=float, default=3600, help="training time of this learning-rate curve")
    parser.add_argument("--pictures", type=int, default=2400, help="clean pictures in the pool")
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--side", type=int, default=128, help="side of the training pictures, px: 64, 128, 192 or 256")
    parser.add_argument("--rate", type=float, default=0.01, help="highest learning rate")
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
