from pathlib import Path

import cv2
import evaluate
import numpy as np
import pytest
from degrade import LEVELS

from facefix.types import Pixels

WEIGHTS = Path(__file__).parents[1] / "weights" / "facefix-lite-256.safetensors"


@pytest.fixture
def faces(portrait: np.ndarray) -> list[tuple[str, Pixels]]:
    """Two small pieces of one face."""
    clean = portrait[0:256, 96:352].astype(np.float32) / np.float32(255)
    return [("eyes", clean[60:156, 70:166]), ("mouth", clean[100:196, 70:166])]


def test_cases_come_from_the_seed(faces: list[tuple[str, Pixels]]) -> None:
    cases, again = (evaluate.make_cases(faces, 2, 3) for _ in range(2))
    assert [(case.level, case.name) for case in cases] == [
        (level, name) for level in LEVELS for name in ("eyes", "mouth") for _ in range(2)
    ]
    for case, twin in zip(cases, again, strict=True):
        np.testing.assert_array_equal(case.source, twin.source)
    assert not np.array_equal(cases[0].source, cases[1].source)


def test_the_table_gives_every_filter_its_best_setting(faces: list[tuple[str, Pixels]]) -> None:
    cases = evaluate.make_cases(faces, 1, 0)
    lines = evaluate.table(cases, lambda pixels: np.asarray(cv2.GaussianBlur(pixels, (0, 0), 0.8)), "blur", False)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(rows) == 5 * len(LEVELS)
    for level in LEVELS:
        here = {row[1].split(" (")[0]: row for row in rows if row[0] == level}
        assert list(here) == ["input", "median", "non-local means", "unsharp mask", "blur"]
        assert here["input"][5] == "0 of 2"
        damaged = [case for case in cases if case.level == level]
        for name, (method, settings) in evaluate.CLASSICAL.items():
            tried = [
                evaluate._scores(damaged, lambda pixels, m=method, s=s: m(s, pixels), False)  # type: ignore[misc]
                for s in settings
            ]
            assert float(here[name][2]) == pytest.approx(max(score[0] for score in tried), abs=0.006)
            assert float(here[name][3]) == pytest.approx(max(score[1] for score in tried), abs=0.00006)


def test_the_network_takes_crops_of_its_own_size_or_larger(portrait: np.ndarray) -> None:
    whole, size = evaluate.network(WEIGHTS, "cpu", None)
    large, larger = evaluate.network(WEIGHTS, "cpu", 288)
    assert (size, larger) == (256, 288)
    picture = portrait[:288, 96:384].astype(np.float32) / np.float32(255)
    assert whole(picture[:256, :256]).shape == (256, 256, 3)
    assert large(picture).shape == picture.shape
    with pytest.raises(SystemExit, match="crops as large"):
        evaluate.network(WEIGHTS, "cpu", 128)


def test_doing_nothing_harms_nothing(faces: list[tuple[str, Pixels]]) -> None:
    [kept, drift, spread] = evaluate.harm(faces, lambda pixels: pixels)
    assert "mean inf dB" in kept
    assert "largest 0.00 levels" in drift
    assert "mean 0.00" in spread


@pytest.mark.parametrize(("folder", "weights"), [("nowhere", str(WEIGHTS)), (".", "no.safetensors")])
def test_what_is_not_there_is_named_in_one_line(folder: str, weights: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^evaluate: .*(nowhere|no\.safetensors)"):
        evaluate.main([str(tmp_path / folder), "--weights", weights])
