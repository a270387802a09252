"""Measures restorers on a folder of sharp faces: PSNR, SSIM and NIQE over seeded damage of three strengths.

    python scripts/evaluate.py ../shared/photos --weights weights/facefix-lite-256.safetensors --sheet build/sheets

Finds the faces of every picture, cuts them out as the restorer wants them (those that are large enough to be reduced,
not enlarged), damages them with `degrade`, and prints a table of the damaged input, a median and a non-local-means
filter, an unsharp mask, and the network. Then what happens to undamaged faces, to mono ones, and to time.
The classical rows are tuned in their favour: each takes, of several settings, the one that gives it the best PSNR at
that level and shows the SSIM of the one that gives it the best SSIM there, a choice that nobody has in practice.
With `--crop` larger than the network, faces are cut at that size and restored in tiles, as `facefix restore` does it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from degrade import LEVELS, MISSING_BASICSR, Tone, degrade, niqe, psnr, ssim, toned

from facefix import align, detect, detectors, imagefile, networks
from facefix.errors import DegenerateLandmarks, FacefixError, PhotoError
from facefix.restore import NetworkRestorer
from facefix.types import Pixels

Restore = Callable[[Pixels], Pixels]
TONES: tuple[Tone, ...] = ("colour", "colour", "colour", "mono", "colour", "sepia", "colour", "faded")


@dataclass(frozen=True, slots=True)
class Case:
    """One damaged face, the target, and where it comes from."""

    name: str
    level: str
    source: Pixels
    target: Pixels


def sharp_faces(folder: Path, size: int, least: float, only: Sequence[str]) -> list[tuple[str, Pixels]]:
    """(name, aligned crop) of every face in the folder's pictures whose crop spans at least `least` times `size` px.

    Args:
        folder: searched without its subfolders.
        size: side of the crops, px.
        least: how much larger than the crop a face must be in the photo.
        only: parts of file names to keep to; all files where empty.
    """
    detector = detectors.load("centerface")
    target = align.template("gpen", size)
    faces = []
    for file in sorted(folder.iterdir()):
        wanted = not only or any(part in file.name for part in only)
        if not wanted or file.suffix.lower() not in imagefile.SUFFIXES:
            continue
        try:
            photo = imagefile.read(file)
        except PhotoError as error:
            print(f"skipped: {error}")
            continue
        for number, face in enumerate(detect.detect(photo, detector)):
            try:
                crop = align.crop(photo, face, target)
            except DegenerateLandmarks:
                continue
            if align.magnification(crop.crop_from_photo) <= 1 / least:
                faces.append((f"{file.stem}#{number}", np.clip(crop.pixels, 0, 1)))
    return faces


def _levels(pixels: Pixels) -> np.ndarray:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _median(width: int, pixels: Pixels) -> Pixels:
    return cv2.medianBlur(_levels(pixels), width).astype(np.float32) / np.float32(255)


def _nlm(strength: float, pixels: Pixels) -> Pixels:
    clean = cv2.fastNlMeansDenoisingColored(_levels(pixels), None, strength, strength, 5, 15)
    return clean.astype(np.float32) / np.float32(255)


def _unsharp(amount: float, pixels: Pixels) -> Pixels:
    return np.clip(pixels + amount * (pixels - cv2.GaussianBlur(pixels, (0, 0), 1.5)), 0, 1)


CLASSICAL: dict[str, tuple[Callable[[float, Pixels], Pixels], tuple[float, ...]]] = {
    "median": (lambda width, pixels: _median(int(width), pixels), (3, 5, 7)),
    "non-local means": (_nlm, (3, 4, 6, 8, 10, 13, 16, 20)),
    "unsharp mask": (_unsharp, (0.1, 0.2, 0.3, 0.5, 0.8)),
}


def network(path: Path, device: str, crop: int | None) -> tuple[Restore, int]:
    """The weight file's network as a function of one aligned crop, and the side of those crops, px."""
    body = networks.load(path, device=device)
    size = crop or body.in_size
    if body.in_size != body.out_size or size < body.in_size:
        sizes = f"{body.in_size} -> {body.out_size}"
        raise SystemExit(f"{path}: expected a network that keeps the size, and crops as large, got {sizes} and {size}")
    restorer = NetworkRestorer(body, path.stem, align.template("gpen", size))
    return lambda pixels: np.clip(restorer.made_of([pixels])[0], 0, 1), size


def make_cases(faces: Sequence[tuple[str, Pixels]], repeats: int, seed: int) -> list[Case]:
    """Every face at every level, `repeats` times with another draw, some of them mono, sepia or faded."""
    cases = []
    for row, level in enumerate(LEVELS):
        for number, (name, clean) in enumerate(faces):
            for repeat in range(repeats):
                rng = np.random.default_rng([seed, row, number, repeat])
                tone = TONES[(number * repeats + repeat) % len(TONES)]
                cases.append(Case(name, level, *degrade(clean, LEVELS[level], rng, tone)))
    return cases


def _scores(cases: Sequence[Case], restore: Restore, with_niqe: bool) -> tuple[float, float, float | None, int]:
    """Mean PSNR, SSIM, NIQE over the cases, and how many of them came out worse (PSNR) than they went in."""
    results = [restore(case.source) for case in cases]
    signal = [psnr(result, case.target) for result, case in zip(results, cases, strict=True)]
    worse = sum(p < psnr(case.source, case.target) - 0.005 for p, case in zip(signal, cases, strict=True))
    likeness = [ssim(result, case.target) for result, case in zip(results, cases, strict=True)]
    natural = [score for result in results if (score := niqe(result)) is not None] if with_niqe else []
    return float(np.mean(signal)), float(np.mean(likeness)), (float(np.mean(natural)) if natural else None), int(worse)


def table(cases: Sequence[Case], restore: Restore, name: str, with_niqe: bool) -> list[str]:
    """The lines of the comparison, a Markdown table."""
    lines = ["| level | row | PSNR dB | SSIM | NIQE | worse than input |", "| --- | --- | --- | --- | --- | --- |"]
    for level in LEVELS:
        here = [case for case in cases if case.level == level]
        rows: list[tuple[str, tuple[float, float, float | None, int]]] = []
        rows.append(("input", _scores(here, lambda pixels: pixels, with_niqe)))
        for title, (method, settings) in CLASSICAL.items():
            tried = {s: _scores(here, lambda p, m=method, s=s: m(s, p), False) for s in settings}  # type: ignore[misc]
            best, likest = (max(tried, key=lambda s, i=i: tried[s][i]) for i in (0, 1))  # type: ignore[misc]
            scores = _scores(here, lambda p, m=method, s=best: m(s, p), with_niqe)  # type: ignore[misc]
            named = f"{title} ({best:g})" if best == likest else f"{title} ({best:g}, for SSIM {likest:g})"
            rows.append((named, (scores[0], tried[likest][1], *scores[2:])))
        rows.append((name, _scores(here, restore, with_niqe)))
        for title, (signal, likeness, natural, worse) in rows:
            shown = "—" if natural is None else f"{natural:.2f}"
            lines.append(f"| {level} | {title} | {signal:.2f} | {likeness:.4f} | {shown} | {worse} of {len(here)} |")
    return lines


def harm(faces: Sequence[tuple[str, Pixels]], restore: Restore) -> list[str]:
    """Lines that say what the network does to undamaged faces, and to the colour of mono ones."""
    rng = np.random.default_rng(0)
    clean = [_levels(picture).astype(np.float32) / np.float32(255) for _, picture in faces]
    kept = [psnr(restore(picture), picture) for picture in clean]
    spreads = []
    for picture in clean:
        for source in (toned(picture, "mono", rng), degrade(picture, LEVELS["medium"], rng, "mono")[0]):
            result = restore(source)
            spreads.append(result.max(axis=2) - result.min(axis=2))
    chroma = np.stack(spreads) * 255
    drift = [float(np.abs((restore(picture) - picture).mean(axis=(0, 1))).max() * 255) for picture in clean]
    return [
        f"undamaged faces: PSNR to the original mean {np.mean(kept):.2f} dB, lowest {min(kept):.2f} dB",
        f"undamaged faces: drift of the mean colour, largest {max(drift):.2f} levels",
        f"mono faces: spread between channels mean {chroma.mean():.2f}, "
        f"99th percentile {np.percentile(chroma, 99):.2f}, largest {chroma.max():.2f} levels",
    ]


def write_sheets(cases: Sequence[Case], restore: Restore, folder: Path) -> None:
    """One picture a level: rows of input, restored, target at 100 %."""
    folder.mkdir(parents=True, exist_ok=True)
    for level in LEVELS:
        rows = [np.hstack([c.source, restore(c.source), c.target]) for c in cases if c.level == level]
        half = (len(rows) + 1) // 2
        rows += [np.zeros_like(rows[0])] * (2 * half - len(rows))
        sheet = np.hstack([np.vstack(rows[:half]), np.vstack(rows[half:])])
        cv2.imwrite(str(folder / f"{level}.png"), _levels(sheet)[..., ::-1])


def main(arguments: Sequence[str]) -> None:
    """Reads the options and prints the figures."""
    parser = argparse.ArgumentParser(description="Measure a face restorer on a folder of sharp faces.")
    parser.add_argument("folder", type=Path, help="pictures with sharp faces")
    parser.add_argument("--weights", type=Path, required=True, help="weight file of the restorer")
    parser.add_argument("--crop", type=int, help="side of the crops, px (default: what the network takes)")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the files to use (default: all)")
    parser.add_argument("--least", type=float, default=1.3, help="how much larger than the crop a face must be")
    parser.add_argument("--repeats", type=int, default=2, help="different damage per face and level")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--device", default="cpu", help="where the network runs")
    parser.add_argument("--niqe", action="store_true", help="measure NIQE too (slow; needs basicsr)")
    parser.add_argument("--sheet", type=Path, help="folder for pictures of input, result and target")
    options = parser.parse_args(arguments)
    try:
        restore, size = network(options.weights, options.device, options.crop)
        faces = sharp_faces(options.folder, size, options.least, options.only)
    except FacefixError as error:
        raise SystemExit(f"evaluate: {error}") from error
    except OSError as error:
        raise SystemExit(f"evaluate: {options.folder}: {error.strerror}; give a folder of pictures") from error
    if not faces:
        raise SystemExit(
            f"{options.folder}: expected pictures with faces of {options.least * size:.0f} px crops, got none"
        )
    print(f"{len(faces)} faces: {', '.join(name for name, _ in faces)}")
    if options.niqe and niqe(faces[0][1]) is None:
        print(MISSING_BASICSR)
        options.niqe = False
    cases = make_cases(faces, options.repeats, options.seed)
    print("\n".join(table(cases, restore, options.weights.stem, options.niqe)))
    print("\n".join(harm(faces, restore)))
    began = time.perf_counter()
    for case in cases[:8]:
        restore(case.source)
    print(f"seconds a face: {(time.perf_counter() - began) / len(cases[:8]):.3f}")
    if options.sheet is not None:
        write_sheets(cases, restore, options.sheet)


if __name__ == "__main__":
    main(sys.argv[1:])
