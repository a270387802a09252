import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from facefix import FaceFix, Photo, Recipe, upscale
from facefix.errors import WeightsInvalid
from facefix.types import Meta


@pytest.fixture
def esrgan_file(tmp_path: Path) -> Path:
    """A small Real-ESRGAN x4 with the published tensor names and made weights."""
    architecture = pytest.importorskip("spandrel.architectures.ESRGAN")
    torch.manual_seed(0)
    model = architecture.ESRGAN(num_filters=8, num_blocks=1, scale=4)
    path = tmp_path / "RealESRGAN_tiny.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lanczos_keeps_depth_and_pixel_centres(scale: int, dtype: type) -> None:
    y, x = np.mgrid[0:40, 0:60]
    top = np.iinfo(dtype).max
    plane = ((x + 2 * y) / 140 * top).astype(dtype)
    photo = Photo(np.dstack([plane] * 3), Meta(bits=np.dtype(dtype).itemsize * 8), plane)  # type: ignore[arg-type]
    large = upscale.lanczos(photo, scale)
    assert large.raster.dtype == dtype
    assert large.alpha is not None
    at_y, at_x = (np.mgrid[0 : 40 * scale, 0 : 60 * scale] + 0.5) / scale - 0.5
    wanted = (at_x + 2 * at_y) / 140 * top
    inner = (slice(4 * scale, -4 * scale),) * 2
    for got in (large.raster[..., 0], large.alpha):
        assert np.abs(got[inner] - wanted[inner]).max() <= top * 0.006 + 1
    assert upscale.lanczos(photo, 1) is photo
    opaque = upscale.lanczos(dataclasses.replace(photo, alpha=np.full_like(plane, top)), scale)
    assert opaque.alpha is not None
    assert opaque.alpha.shape == large.alpha.shape
    assert opaque.alpha.dtype == dtype
    assert (opaque.alpha == top).all()


def test_tiles_of_a_network_meet_without_a_seam(esrgan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upscale, "_TILE_PX", 96)
    rng = np.random.default_rng(3)
    smooth = cv2.resize(rng.random((6, 6, 3)).astype(np.float32), (140, 130), interpolation=cv2.INTER_CUBIC)
    photo = Photo((np.clip(smooth, 0, 1) * 255).astype(np.uint8))
    enlarge = upscale.load(esrgan_file, device="cpu", precision="float32")
    tiled = enlarge(photo, 4)
    batch = torch.from_numpy(photo.pixels().transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        whole = enlarge.model(batch)[0].numpy().transpose(1, 2, 0)
    wanted = np.rint(np.clip(whole, 0, 1) * 255)
    assert tiled.raster.shape == (520, 560, 3)
    assert np.abs(tiled.raster.astype(int) - wanted).max() <= 1


def test_a_network_of_factor_four_serves_scale_two_and_gray_stays_gray(esrgan_file: Path) -> None:
    plane = (np.mgrid[0:50, 0:70][1] * 3).astype(np.uint8)
    photo = Photo(np.dstack([plane] * 3), Meta(gray=True), plane)
    large = upscale.load(esrgan_file, device="cpu", precision="auto")(photo, 2)
    assert large.raster.shape == (100, 140, 3)
    assert (large.raster == large.raster[..., :1]).all()
    assert large.alpha is not None
    assert large.alpha.shape == (100, 140)


def test_faces_are_pasted_into_what_the_network_enlarged(esrgan_file: Path, portrait: np.ndarray) -> None:
    recipe = Recipe(restorer="facefix-lite-256", scale=2, upscaler=str(esrgan_file))
    fix = FaceFix.load(recipe)
    portrait = cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_AREA)
    result = fix(portrait)
    assert fix.upscaler is not None
    background = fix.upscaler(Photo(portrait), 2).raster
    [note] = result.report.faces
    assert note.outcome == "restored"
    x0, y0, x1, y1 = (note.face.box_xyxy * 2).astype(int)
    assert (result.photo.raster[y0:y1, x0:x1] != background[y0:y1, x0:x1]).mean() > 0.5
    np.testing.assert_array_equal(result.photo.raster[350:], background[350:])


def test_a_file_that_enlarges_nothing_is_refused(tiny_gpen_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    with pytest.raises(WeightsInvalid, match="expected a Real-ESRGAN, got another network"):
        upscale.load(tiny_gpen_file, device="cpu", precision="float32")
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(WeightsInvalid):
        upscale.load(tmp_path / "page.pth", device="cpu", precision="float32")
