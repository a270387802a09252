"""The store: downloads, pinned digests and consent to licences, and the command that asks for them."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from made_store import CLOSED, FREE, put
from typer.testing import CliRunner

from facefix import cli_weights
from facefix.errors import DownloadFailed, UsageError, WeightsError, WeightsInvalid, WeightsMissing, WeightsNotAccepted
from facefix.weights import Store


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
    assert shop.notices([shop.record("closed")]) == ()
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
    [notice] = shop.notices([weight, shop.record("free")])
    assert "licence NC" in notice
    assert shop.notices([weight]) == ()
    assert not shop.accepted(weight)
    shop.accept("closed")
    assert shop.accepted(weight)


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
