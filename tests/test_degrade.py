from itertools import pairwise
from typing import Any

import cv2
import degrade
import numpy as np
import pytest
from degrade import LEVELS, Tone
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from facefix.types import Pixels

TONES: tuple[Tone, ...] = ("colour", "mono", "sepia", "faded")


@pytest.fixture
def clean(portrait: np.ndarray) -> Pixels:
    """(256, 256, 3) around the face."""
    return portrait[0:256, 96:352].astype(np.float32) / np.float32(255)


def damaged(clean: Pixels, level: str, seed: int, tone: Tone = "colour") -> tuple[Pixels, Pixels]:
    return degrade.degrade(clean, LEVELS[level], np.random.default_rng(seed), tone)


def part_of_basicsr(name: str) -> Any:
    part = degrade.basicsr_part(name)
    if part is None:
        pytest.skip("needs basicsr")
    return part


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tone", TONES)
@pytest.mark.parametrize("level", LEVELS)
def test_damage_comes_from_the_seed_alone_and_stays_in_range(clean: Pixels, level: str, tone: Tone) -> None:
    before = clean.copy()
    for seed in range(6):
        source, target = damaged(clean, level, seed, tone)
        np.random.seed(seed)
        again = damaged(clean, level, seed, tone)
        np.testing.assert_array_equal(source, again[0])
        np.testing.assert_array_equal(target, again[1])
        for picture in (source, target):
            assert picture.shape == clean.shape
            assert picture.dtype == np.float32
            assert picture.min() >= 0
            assert picture.max() <= 1
        np.testing.assert_array_equal(source, np.rint(source * 255) / np.float32(255))
        assert not np.array_equal(source, damaged(clean, level, seed + 100, tone)[0])
    np.testing.assert_array_equal(clean, before)


def test_drawing_noise_leaves_the_global_generator_alone() -> None:
    np.random.seed(1)
    expected = np.random.random(5)
    np.random.seed(1)
    degrade.gaussian_noise((8, 8, 3), 10, 3, gray=False)
    np.testing.assert_array_equal(np.random.random(5), expected)


def test_the_target_is_the_clean_picture_in_its_tone(clean: Pixels) -> None:
    for seed in range(4):
        np.testing.assert_array_equal(damaged(clean, "heavy", seed)[1], clean)
        source, mono = damaged(clean, "heavy", seed, "mono")
        np.testing.assert_allclose(mono[..., 0], clean @ degrade.LUMA, atol=1e-6)
        for picture in (source, mono):
            np.testing.assert_array_equal(picture.max(axis=2), picture.min(axis=2))
        sepia = damaged(clean, "heavy", seed, "sepia")[1]
        assert (np.diff(sepia, axis=2) <= 0).all()
        faded = damaged(clean, "heavy", seed, "faded")[1]
        assert np.ptp(faded) < np.ptp(clean)


def test_each_level_is_worse_than_the_one_before(clean: Pixels) -> None:
    signal = []
    for level in LEVELS:
        pairs = [damaged(clean, level, seed) for seed in range(8)]
        signal.append(np.mean([degrade.psnr(*pair) for pair in pairs]))
    assert all(milder > stronger + 2 for milder, stronger in pairwise(signal))


def test_blur_kernels_are_gaussians_of_that_covariance() -> None:
    for sigma_x, sigma_y, angle in [(1.0, 1.0, 0.0), (2.0, 0.8, 0.5), (0.7, 1.5, 2.0)]:
        kernel = degrade.gaussian_kernel(sigma_x, sigma_y, angle).astype(np.float64)
        reach = kernel.shape[0] // 2
        assert kernel.shape == (2 * reach + 1, 2 * reach + 1)
        assert reach >= 3 * max(sigma_x, sigma_y)
        assert kernel.sum() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-7)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        points = np.stack([x, y], axis=-1)
        covariance = np.einsum("hw,hwi,hwj->ij", kernel, points, points)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        expected = turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T
        np.testing.assert_allclose(covariance, expected, atol=0.03 * max(sigma_x, sigma_y) ** 2)


def test_noise_and_grain_have_their_strength_and_are_gray_where_asked() -> None:
    shape = (200, 200, 3)
    colour, gray = (degrade.gaussian_noise(shape, 12, 5, gray=gray) for gray in (False, True))
    grain = degrade.film_grain(shape, 12, np.random.default_rng(5))
    for noise in (colour, gray, grain):
        assert noise.shape == shape
        assert noise.dtype == np.float32
        assert noise.std() * 255 == pytest.approx(12, rel=0.02)
    assert np.ptp(colour, axis=2).mean() > 0.02
    assert not np.ptp(gray, axis=2).any()
    assert not np.ptp(grain, axis=2).any()


def test_jpeg_loses_more_the_lower_the_quality(clean: Pixels) -> None:
    signal = [degrade.psnr(degrade.jpeg(clean, quality), clean) for quality in (95, 75, 40, 10)]
    assert signal == sorted(signal, reverse=True)
    flat = np.full((32, 32, 3), 128 / 255, np.float32)
    np.testing.assert_allclose(degrade.jpeg(flat, 50), flat, atol=1e-6)


def test_at_quality_100_there_is_no_file_in_between(clean: Pixels) -> None:
    nothing = degrade.Level((0.05, 0.05), (1.0, 1.0), (0.0, 0.0), (100, 100), 0, 0)
    source, target = degrade.degrade(clean, nothing, np.random.default_rng(1))
    np.testing.assert_allclose(source, target, atol=0.6 / 255)


def test_scars_keep_the_range_and_screens_spare_black_and_white(clean: Pixels) -> None:
    for seed in range(6):
        scarred = degrade.scarred(clean, np.random.default_rng(seed))
        assert scarred.min() >= 0
        assert scarred.max() <= 1
        assert 0 < (scarred != clean).any(axis=2).mean() < 0.4
    extremes = np.zeros((32, 32, 3), np.float32)
    extremes[:16] = 1
    np.testing.assert_array_equal(degrade.halftoned(extremes, np.random.default_rng(0)), extremes)
    assert np.ptp(degrade.halftoned(np.full_like(extremes, 0.5), np.random.default_rng(0))) > 0.1


# --- figures ---------------------------------------------------------------------------------------------------------


def test_psnr_against_its_closed_form_and_scikit_image(clean: Pixels) -> None:
    dark = np.full((40, 40, 3), 0.25, np.float32)
    assert degrade.psnr(dark, dark) == float("inf")
    assert degrade.psnr(dark, dark + np.float32(0.125)) == pytest.approx(-20 * np.log10(0.125))
    source, target = damaged(clean, "medium", 1)
    pair = target.astype(np.float64), source.astype(np.float64)
    expected = peak_signal_noise_ratio(*pair, data_range=1)  # type: ignore[no-untyped-call]
    assert degrade.psnr(source, target) == pytest.approx(expected, abs=1e-9)


def test_ssim_against_its_closed_form_and_scikit_image(clean: Pixels) -> None:
    dark, light = np.full((40, 40, 3), 0.25, np.float32), np.full((40, 40, 3), 0.5, np.float32)
    assert degrade.ssim(clean, clean) == pytest.approx(1, abs=1e-12)
    expected = (2 * 0.25 * 0.5 + 1e-4) / (0.25**2 + 0.5**2 + 1e-4)
    assert degrade.ssim(dark, light) == pytest.approx(expected, abs=1e-9)
    source, target = damaged(clean, "medium", 1)
    expected = structural_similarity(  # type: ignore[no-untyped-call]
        source.astype(np.float64),
        target.astype(np.float64),
        data_range=1,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert degrade.ssim(source, target) == pytest.approx(expected, abs=1e-9)


# --- basicsr and its twins -------------------------------------------------------------------------------------------


def test_without_basicsr_the_twins_serve_and_niqe_is_absent(clean: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [damaged(clean, level, 7) for level in LEVELS]
    monkeypatch.setattr(degrade, "basicsr_part", lambda name: None)
    for (source, target), level in zip(found, LEVELS, strict=True):
        alone = damaged(clean, level, 7)
        # Noise may differ in its last bit, which moves a pixel by a level now and then.
        assert np.abs(alone[0] - source).max() < 3 / 255
        assert (alone[0] != source).mean() < 0.001
        np.testing.assert_array_equal(alone[1], target)
    assert degrade.niqe(clean) is None


def test_twins_equal_basicsr(clean: Pixels) -> None:
    degradations = part_of_basicsr("data.degradations")
    for sigma_x, sigma_y, angle in [(1.3, 0.5, 0.4), (0.2, 2.2, 1.5)]:
        kernel = degrade.gaussian_kernel(sigma_x, sigma_y, angle)
        twin = degrade.gaussian_kernel_twin(kernel.shape[0], sigma_x, sigma_y, angle)
        np.testing.assert_allclose(kernel, twin, atol=1e-7)
    for gray in (False, True):
        noise = degrade.gaussian_noise((20, 30, 3), 9, 4, gray=gray)
        np.testing.assert_allclose(noise, degrade.gaussian_noise_twin((20, 30, 3), 9, 4, gray=gray), atol=1e-7)
    rough = clean + degrade.gaussian_noise_twin(clean.shape, 20, 1, gray=False)
    for quality in (25, 75, 100):
        theirs = degradations.add_jpg_compression(rough[..., ::-1], quality)[..., ::-1]
        # basicsr hands float levels to OpenCV, which rounds halves as it likes.
        assert (degrade.jpeg(rough, quality) != theirs).mean() < 0.001


def test_figures_equal_those_of_basicsr(clean: Pixels) -> None:
    metrics = part_of_basicsr("metrics")
    source, target = damaged(clean, "heavy", 2)
    levels = source * np.float32(255), target * np.float32(255)
    assert degrade.psnr(source, target) == pytest.approx(metrics.calculate_psnr(*levels, 0), abs=1e-4)
    assert degrade.ssim(source, target) == pytest.approx(metrics.calculate_ssim(*levels, 0), abs=1e-4)


def test_niqe_calls_a_sharp_picture_more_natural_than_a_blurred_one(clean: Pixels) -> None:
    part_of_basicsr("metrics")
    sharp, soft = degrade.niqe(clean), degrade.niqe(np.asarray(cv2.GaussianBlur(clean, (0, 0), 3), np.float32))
    assert sharp is not None
    assert soft is not None
    assert sharp < soft
