import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import cv2
import degrade
import lite_data
import lite_network
import numpy as np
import pytest
import torch
import train_lite

from facefix import FaceFix, Photo, Recipe, networks, runtime
from facefix.gpen import GPEN
from facefix.networks import Network
from facefix.types import Pixels

FLOOR = lite_network.FLOOR
WEIGHTS = Path(__file__).parents[1] / "weights" / "facefix-lite-256.safetensors"


@pytest.fixture(scope="module")
def network() -> Network:
    return networks.load(WEIGHTS)


@pytest.fixture(scope="module")
def pool() -> np.ndarray:
    return lite_data.clean_pool(3, 4, 256)


@pytest.fixture
def face(portrait: np.ndarray) -> Pixels:
    """(256, 256, 3) around the face of a photo that was not trained on."""
    return portrait[0:256, 96:352].astype(np.float32) / np.float32(255)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the numbers of threads back, which training sets."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def restored(network: Network, picture: Pixels) -> Pixels:
    return np.clip(runtime.run(network, [picture], batch=1)[0], 0, 1)


def shaken(seed: int) -> GPEN:
    """An identity network with everything moved a little, except that its style stays constant."""
    model = lite_network.identity_network(seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("modulation.weight"):
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return model


# --- pictures --------------------------------------------------------------------------------------------------------


def test_made_pictures_come_from_the_seed_and_a_pool_can_grow(pool: np.ndarray) -> None:
    assert pool.shape == (4, 256, 256, 3)
    assert pool.dtype == np.uint8
    np.testing.assert_array_equal(lite_data.clean_pool(3, 2, 256), pool[:2])
    assert (np.ptp(pool, axis=(1, 2, 3)) > 40).all()
    assert len({picture.tobytes() for picture in pool}) == 4


def test_each_kind_of_picture_is_made_in_range() -> None:
    rng = np.random.default_rng(1)
    textures, photos = lite_data.Textures(rng), lite_data.free_photos()
    for picture in (
        lite_data.dead_leaves(rng, 128, textures),
        lite_data.drawn_face(rng, 128, textures),
        lite_data.photo_cut(rng, 128, photos),
        lite_data.clean_picture(rng, 128, textures, []),
    ):
        assert picture.shape == (128, 128, 3)
        assert picture.dtype == np.float32
        assert 0 <= picture.min() < picture.max() <= 1


def test_photos_have_rights_and_none_is_trained_on_and_judged_by() -> None:
    assert not set(lite_data.FREE_PHOTOS) & set(lite_data.VALIDATION_PHOTOS)
    for names in (lite_data.FREE_PHOTOS, lite_data.VALIDATION_PHOTOS):
        # Of the packages that carry them, tests need scikit-image alone.
        carried = [name for name in names if importlib.util.find_spec(name.split("/")[0])]
        assert any(name.startswith("skimage/") for name in carried)
        photos = lite_data.free_photos(carried)
        assert len(photos) == len(carried)
        assert all(photo.ndim == 3 and photo.dtype == np.float32 and 0.3 < np.ptp(photo) <= 1 for photo in photos)
        assert all(
            right.startswith(("CC0 (", "CC BY 2.0 (", "public domain (", "no known copyright restrictions ("))
            for right in names.values()
        )


def test_what_is_flat_gets_a_texture_that_is_faint_and_uneven() -> None:
    rng = np.random.default_rng(8)
    flat = np.full((128, 128, 3), 0.5, np.float32)
    woven = lite_data._woven(flat, rng, lite_data.Textures(rng, 256, 4)) - flat
    assert 0.0005 < woven.std() < 0.05
    np.testing.assert_allclose(woven[..., 0], woven[..., 2], atol=1e-6)
    strengths = [block.std() for rows in np.split(woven, 4) for block in np.split(rows, 4, axis=1)]
    assert max(strengths) > 2 * min(strengths)


def test_batches_depend_on_seed_and_step_alone(pool: np.ndarray) -> None:
    photos = lite_data.free_photos()
    source, target, gray = train_lite.make_batch(pool, 5, 17, 6, 64, photos)
    again = train_lite.make_batch(pool, 5, 17, 6, 64, photos)
    assert all(torch.equal(a, b) for a, b in zip((source, target, gray), again, strict=True))
    assert not torch.equal(source, train_lite.make_batch(pool, 5, 18, 6, 64)[0])
    assert source.shape == target.shape == (6, 3, 64, 64)
    assert source.dtype == target.dtype == torch.float32
    for batch in (source, target):
        assert -1 <= batch.min() < batch.max() <= 1
    for picture, is_gray in zip(target, gray, strict=True):
        assert not is_gray or (picture.amax(dim=0) - picture.amin(dim=0)).max() < 1e-5
    assert 0 < gray.sum() < len(gray)


# --- network and loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1000])
def test_training_begins_with_the_identity(seed: int) -> None:
    model = lite_network.identity_network(seed)
    pictures = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    assert (model(pictures) - pictures).abs().max() < 1e-3
    with torch.no_grad():
        assert (model.eval()(pictures) - pictures).abs().max() < 1e-3


def test_the_folded_forward_is_the_networks_own() -> None:
    model = shaken(2)
    pictures = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        expected = model(pictures)
        found = lite_network.folded_forward(model, pictures)
    assert (expected - pictures).abs().mean() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_pictures_for_training_may_be_smaller_and_oblong() -> None:
    model = shaken(3)
    pictures = torch.rand(1, 3, 128, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        assert lite_network.folded_forward(model, pictures).shape == pictures.shape


def test_training_begins_with_features_of_contrast_not_of_brightness() -> None:
    model = lite_network.identity_network(4)
    [halving] = model.get_submodule("ecd1")
    even = torch.full((1, lite_network.CHANNELS[-1], 16, 16), 0.7)
    rough = even + 0.1 * torch.randn(even.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert halving(even)[..., 2:-2, 2:-2].abs().max() < 1e-4
        assert halving(rough).abs().mean() > 0.02
        last = model.get_submodule("generator.convs").get_submodule(str(2 * len(lite_network.CHANNELS) - 3))
        weight = last.get_parameter("conv.weight")[0]
    context, contrast = weight[:, : lite_network.CHANNELS[-1]], weight[:, lite_network.CHANNELS[-1] :][:, :6]
    torch.testing.assert_close(context[0::2], context[1::2])
    torch.testing.assert_close(contrast[0::2], -contrast[1::2])
    assert contrast.abs().max() > 0.5


@pytest.mark.parametrize("shape", [(8, 30), (30, 8)])
def test_a_step_is_made_orthogonal(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(6)
    matrix = torch.randn(*shape, generator=draw) * torch.logspace(-2, 0, shape[1])
    values = torch.linalg.svdvals(lite_network.orthogonal(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3
    parameter = torch.nn.Parameter(torch.zeros(4, 2, 3, 3))
    parameter.grad = torch.randn(4, 2, 3, 3, generator=draw)
    lite_network.Muon([parameter], lr=0.01).step()
    assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(0.01, rel=0.3)
    assert float((parameter.detach() * parameter.grad).sum()) < 0


def test_training_is_watched_with_ten_pieces_at_every_level() -> None:
    pairs = train_lite.validation_pairs()
    assert [name for name, _, _ in pairs] == [level for level in degrade.LEVELS for _ in range(10)]
    for (_, source, target), (_, again, _) in zip(pairs, train_lite.validation_pairs(), strict=True):
        np.testing.assert_array_equal(source, again)
        assert source.shape == target.shape == (256, 256, 3)
        assert 15 < degrade.psnr(source, target) < 45


def test_the_loss_is_psnr_with_edges_and_the_colour_of_grey_photos() -> None:
    target = torch.zeros(2, 3, 16, 16)
    gray = torch.tensor([0.0, 1.0])
    assert float(lite_network.loss_of(target, target, gray)) == pytest.approx(np.log(FLOOR))
    flat = torch.full_like(target, 0.1)
    assert float(lite_network.loss_of(flat, target, gray)) == pytest.approx(np.log(0.01 + FLOOR), rel=1e-5)
    red = target.clone()
    red[:, 0] = 0.3
    expected = np.mean([np.log(0.03 + FLOOR), np.log(0.03 + 4 * 0.02 + FLOOR)])
    assert float(lite_network.loss_of(red, target, gray)) == pytest.approx(expected, rel=1e-5)
    stripes = target.clone()
    stripes[..., ::2] = 0.1
    expected = np.log(0.005 + 0.25 * 0.01 + FLOOR)
    assert float(lite_network.loss_of(stripes, target, gray * 0)) == pytest.approx(expected, rel=1e-5)


def test_likeness_is_the_ssim_that_is_reported(face: Pixels) -> None:
    pairs = [degrade.degrade(face, degrade.LEVELS["medium"], np.random.default_rng(seed)) for seed in (1, 2)]
    sources, targets = (train_lite.as_tensor(pictures) for pictures in zip(*pairs, strict=True))
    found = lite_network.likeness_of(sources, targets)
    np.testing.assert_allclose(found.numpy(), [degrade.ssim(*pair) for pair in pairs], atol=1e-4)


# --- training --------------------------------------------------------------------------------------------------------


def test_the_best_average_is_kept_and_a_worse_one_is_not(tmp_path: Path) -> None:
    options = {"work": tmp_path, "seed": 5, "rate": 0.01, "begin": None, "fresh_schedule": False}
    trainer = train_lite.Trainer(argparse.Namespace(**options), torch.device("cpu"))
    pairs = train_lite.validation_pairs()[::10]
    trainer.report(pairs, "")
    kept, best = (tmp_path / "lite.safetensors").read_bytes(), trainer.best
    with torch.no_grad():
        trainer.average.get_submodule("generator.to_rgbs.5").get_parameter("bias").add_(0.1)
    trainer.report(pairs, "")
    assert (tmp_path / "lite.safetensors").read_bytes() == kept
    assert (tmp_path / "last.safetensors").read_bytes() != kept
    assert trainer.best == best
    with torch.no_grad():
        trainer.average.load_state_dict(trainer.model.state_dict())
    trainer.best -= 0.001
    trainer.report(pairs, "")
    assert trainer.best == pytest.approx(best)


def trained(work: Path, *more: str) -> dict[str, object]:
    """The state after a call of the trainer, which takes at least one step wherever time is left."""
    options = ["--pictures", "8", "--sides", "64", "--batch", "1", "--threads", "1", "--seconds", "0.2", *more]
    train_lite.main(["--work", str(work), *options])
    state: dict[str, object] = torch.load(work / "state.pt", weights_only=True)
    return state


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_training_writes_weights_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = train_lite.validation_pairs()[::10]
    monkeypatch.setattr(train_lite, "validation_pairs", lambda: pairs)
    first = trained(tmp_path)
    steps = int(str(first["step"]))
    assert steps >= 1
    network = networks.load(tmp_path / "lite.safetensors")
    assert (network.in_size, network.out_size) == (256, 256)
    assert (tmp_path / "sheet.png").is_file()
    pictures = (tmp_path / "pool" / "000.npy").read_bytes()
    assert int(str(trained(tmp_path, "--fresh-schedule")["step"])) > steps
    assert (tmp_path / "pool" / "000.npy").read_bytes() == pictures


# --- the weights that come with facefix ------------------------------------------------------------------------------


def test_the_shipped_file_is_small_and_of_float16() -> None:
    assert WEIGHTS.stat().st_size <= 12e6
    state = networks.read_state(WEIGHTS)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    model = GPEN.from_state({name: tensor.float() for name, tensor in state.items()})
    assert model.shape.channels == lite_network.CHANNELS
    styles = [name for name in state if name.endswith("modulation.weight")]
    assert styles
    assert not any(state[name].any() for name in styles)


def test_an_undamaged_face_comes_back_as_it_was(network: Network, face: Pixels) -> None:
    assert (network.in_size, network.out_size) == (256, 256)
    assert degrade.psnr(restored(network, face), face) >= 40


@pytest.mark.parametrize(
    ("sigma", "quality", "gain_db", "likeness"),
    [(4, 90, 0.6, 0.02), (8, 70, 0.9, 0.05), (15, 50, 1.7, 0.15), (25, 35, 3.0, 0.25)],
)
def test_a_noisy_jpeg_comes_out_better(
    network: Network, face: Pixels, sigma: float, quality: int, gain_db: float, likeness: float
) -> None:
    noise = degrade.gaussian_noise_twin(face.shape, sigma, 11, gray=False)
    source = degrade.jpeg(np.clip(face + noise, 0, 1), quality)
    result = restored(network, source)
    assert degrade.psnr(result, face) > degrade.psnr(source, face) + gain_db
    assert degrade.ssim(result, face) > degrade.ssim(source, face) + likeness


def test_a_grey_photo_stays_exactly_grey(portrait: np.ndarray) -> None:
    rng = np.random.default_rng(4)
    clean = portrait.astype(np.float32) / np.float32(255)
    source, _ = degrade.degrade(clean, degrade.LEVELS["medium"], rng, "mono")
    raster = np.rint(source * 255).astype(np.uint8)
    assert not np.ptp(raster, axis=2).any()
    fix = FaceFix.load(Recipe(restorer="facefix-lite-256", colour="auto"), device="cpu")
    result = fix(Photo(raster))
    assert [note.outcome for note in result.report.faces] == ["restored"]
    assert (result.photo.raster != raster).any()
    assert not np.ptp(result.photo.raster, axis=2).any()
