"""From file to file: metadata, depth and known pixels are kept, and the file says what AI made."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from made_fills import PROFILE, Flat, Reckless, distance_slowly, noise, painter, strokes
from PIL import Image

from facefix import Inpainter, Recipe, imagefile
from facefix.inpaint import KINDS


def saved(work: Inpainter, scene: Path, mask: np.ndarray, out: Path) -> tuple[Sequence[str], bytes]:
    photo = imagefile.read(scene)
    lost = work.save(work(photo, mask), photo, out)
    return lost, out.read_bytes()


LABEL = b"compositeWithTrainedAlgorithmicMedia"


def test_the_file_keeps_its_metadata_and_says_what_ai_made(
    telea: Inpainter, portrait: np.ndarray, tmp_path: Path
) -> None:
    source = tmp_path / "scene.png"
    exif = Image.Exif()
    exif[0x010E] = "my grandmother"
    Image.fromarray(portrait).save(source, icc_profile=PROFILE, exif=exif, dpi=(300, 300))
    away, across = np.zeros((512, 512), bool), np.zeros((512, 512), bool)
    away[400:410, 20:60] = True
    across[60:170, 220:223] = True
    lost, plain = saved(telea, source, away, tmp_path / "away.png")
    assert (lost, LABEL in plain) == ((), False)
    got = imagefile.read(tmp_path / "away.png")
    before = imagefile.read(source)
    assert (got.meta.icc, got.meta.dpi) == (before.meta.icc, before.meta.dpi)
    assert b"my grandmother" in (got.meta.exif or b"")
    np.testing.assert_array_equal(got.raster[:390], before.raster[:390])
    assert LABEL in saved(telea, source, across, tmp_path / "across.png")[1]
    network = Inpainter(Recipe(faces=False), KINDS["lama"], Flat(1, 0, 0), None)
    assert LABEL in saved(network, source, away, tmp_path / "network.png")[1]
    silent = Inpainter(Recipe(faces=False, ai_label=False), KINDS["lama"], Flat(1, 0, 0), None)
    assert LABEL not in saved(silent, source, away, tmp_path / "silent.png")[1]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_known_pixels_keep_their_bits_from_file_to_file(bits: int, channels: int, suffix: str, tmp_path: Path) -> None:
    icc = PROFILE if channels > 2 else imagecodecs.cms_profile("gray", gamma=1.8)
    array = noise(bits, channels=channels)
    made = imagefile.from_array(array)
    imagefile.write(
        dataclasses.replace(made, meta=dataclasses.replace(made.meta, icc=icc)),
        tmp_path / f"in{suffix}",
        ai_label=False,
    )
    photo = imagefile.read(tmp_path / f"in{suffix}")
    assert (photo.meta.bits, photo.meta.gray, photo.meta.icc) == (bits, channels < 3, icc)
    work = painter(Reckless())
    assert work.save(work(photo, strokes()), photo, tmp_path / f"out{suffix}") == ()
    got = imagefile.read(tmp_path / f"out{suffix}")
    known = distance_slowly(strokes()) >= 4
    colours = array[:, :, : 1 if channels < 3 else 3]
    np.testing.assert_array_equal(got.raster[known], np.broadcast_to(colours, (48, 64, 3))[known])
    assert (got.raster != photo.raster).any(axis=2)[strokes()].mean() > 0.9
    assert (got.meta.bits, got.meta.gray, got.meta.icc) == (bits, channels < 3, icc)
    if channels in (2, 4):
        np.testing.assert_array_equal(got.alpha, array[:, :, -1])


def test_a_fill_that_changes_nothing_copies_the_file_and_one_that_changes_alpha_does_not(tmp_path: Path) -> None:
    flat = np.full((40, 40, 4), 128, np.uint8)
    flat[:, :, 3] = 255
    Image.fromarray(flat).save(tmp_path / "flat.png", compress_level=0)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    work = painter(Flat(*(3 * [128 / 255])))
    assert saved(work, tmp_path / "flat.png", mask, tmp_path / "same.png")[1] == (tmp_path / "flat.png").read_bytes()
    flat[10:20, 10:20, 3] = 0
    Image.fromarray(flat).save(tmp_path / "holed.png")
    photo = imagefile.read(tmp_path / "holed.png")
    work.save(work(photo), photo, tmp_path / "filled.png")
    with Image.open(tmp_path / "filled.png") as written:
        assert np.asarray(written)[:, :, 3].min() == 255
