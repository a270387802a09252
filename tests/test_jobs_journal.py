import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from facefix.errors import JournalError
from facefix.jobs.database import FOLDER
from facefix.jobs.journal import Journal
from facefix.jobs.rows import Found, Mark, Row, row_id

REPORT = {
    "source": "s",
    "target": "t",
    "width": 1,
    "height": 1,
    "recipe": {"seed": 0},
    "weights": {},
    "faces": [],
    "warnings": [],
    "seconds": 0.1,
    "target_sha256": "aa",
}


def photo(name: str | bytes = "a.jpg", *, mtime_ns: int = 1, root: str = "/scans") -> Found:
    place = Path(os.fsdecode(name))
    return Found(place, Path(root) / place, Mark(10, mtime_ns, 7), place.name, place.name)


@pytest.fixture
def journal(tmp_path: Path):
    with Journal.open(tmp_path / "out", create=True) as opened:
        yield opened


def queued(journal: Journal, *names: str | bytes) -> tuple[int, int]:
    run, recipe = journal.begin(), journal.recipe("digest", {"seed": 0}, {"net": "ab"})
    for name in names:
        assert journal.add(photo(name), run=run, recipe=recipe)[0] == "new"
    return run, recipe


def finished(journal: Journal, row: Row, work: str = "w") -> None:
    assert journal.settle(row, mark=row.mark, sha256="cc", work=work, target=row.place)
    assert journal.finish(row, REPORT | {"target": str(row.place), "id": row_id(work, row.place)})
    path = journal.out / row.place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"result")


def test_photos_are_claimed_in_the_order_in_which_they_were_met_and_finished_once(journal: Journal) -> None:
    run, _ = queued(journal, "b.jpg", "a.jpg", "c.jpg")
    first, second = journal.claim(run, 2)
    assert [first.place.name, second.place.name] == ["b.jpg", "a.jpg"]
    assert (first.state, first.attempt, first.target) == ("running", 1, None)
    finished(journal, first)
    assert not journal.finish(first, REPORT)
    assert journal.fail(second, "no picture")
    assert journal.counts() == {"queued": 1, "running": 0, "done": 1, "failed": 1}
    report = journal.report(row_id("w", first.place))
    assert report is not None
    assert list(report)[:6] == ["source", "target", "width", "height", "recipe", "weights"]
    assert (report["recipe"], report["weights"]) == ({"seed": 0}, {"net": "ab"})


def test_a_hand_that_was_given_up_changes_nothing(journal: Journal) -> None:
    run, _ = queued(journal, "a.jpg")
    [late] = journal.claim(run, 1, lease_s=-1)
    assert journal.claim(run, 1) == []
    journal.renew([])
    [row] = journal.claim(run, 1)
    assert row.attempt == late.attempt + 1
    assert not journal.settle(late, mark=late.mark, sha256="c", work="w", target=Path("a.jpg"))
    assert not journal.finish(late, REPORT)
    assert not journal.fail(late, "late")
    assert not journal.release(late)
    finished(journal, row)


def test_a_lease_that_is_renewed_is_not_over(journal: Journal) -> None:
    run, _ = queued(journal, "a.jpg")
    [row] = journal.claim(run, 1, lease_s=-1)
    journal.renew([row.number])
    assert journal.claim(run, 1) == []
    again = journal.retry(row)
    assert (again.attempt, again.state) == (2, "running")


def test_what_an_earlier_run_left_running_is_queued_again(journal: Journal) -> None:
    run, recipe = queued(journal, "a.jpg")
    [row] = journal.claim(run, 1)
    assert journal.settle(row, mark=row.mark, sha256="c", work="w", target=Path("a.jpg"))
    run = journal.begin()
    assert journal.claim(run, 1) == [], "only what this run has met is claimed"
    verdict, before = journal.add(photo("a.jpg"), run=run, recipe=recipe)
    assert (verdict, before and before.target) == ("again", Path("a.jpg"))
    assert [again.target for again in journal.claim(run, 1)] == [Path("a.jpg")]


def test_what_is_done_and_unchanged_stays_and_what_changed_is_done_anew(journal: Journal) -> None:
    run, recipe = queued(journal, "done.jpg", "failed.jpg", "gone.jpg", "moved.jpg")
    done, failed, gone, moved = journal.claim(run, 4)
    for row in (done, gone, moved):
        finished(journal, row)
    (journal.out / "gone.jpg").unlink()
    journal.fail(failed, "no picture")

    def verdict(found: Found, **wishes: bool) -> str:
        return journal.add(found, run=journal.begin(), **({"recipe": recipe} | wishes))[0]

    assert verdict(photo("done.jpg")) == "done"
    assert verdict(photo("gone.jpg")) == "again"
    assert verdict(photo("failed.jpg")) == "failed"
    assert verdict(photo("failed.jpg"), retry_failed=True) == "again"
    assert verdict(photo("moved.jpg", root="/elsewhere")) == "taken"
    assert verdict(photo("moved.jpg", root="/elsewhere"), moved=True) == "done"
    assert verdict(photo("done.jpg", mtime_ns=2)) == "again"
    run = journal.begin()
    assert journal.add(photo("moved.jpg"), run=run, recipe=journal.recipe("other", {}, {}), moved=True)[0] == "again"
    assert journal.add(photo("moved.jpg"), run=run, recipe=recipe)[0] == "twice"
    assert journal.add(photo("moved.jpg", root="/b"), run=run, recipe=recipe)[0] == "taken"
    assert journal.claim(run, 1)[0].work == "w", "same content and recipe will show that nothing is to be done"
    assert verdict(photo("moved.jpg"), force=True) == "again"


def test_forced_photos_forget_the_work_that_was_done(journal: Journal) -> None:
    run, recipe = queued(journal, "a.jpg")
    finished(journal, journal.claim(run, 1)[0])
    run = journal.begin()
    assert journal.add(photo(), run=run, recipe=recipe, force=True)[0] == "again"
    [row] = journal.claim(run, 1)
    assert (row.work, row.target, row.target_sha256) == (None, Path("a.jpg"), "aa")


def test_two_photos_never_get_one_target(journal: Journal) -> None:
    run, _ = queued(journal, "a.jpg", "b.jpg")
    first, second = journal.claim(run, 2)
    assert journal.settle(first, mark=first.mark, sha256="c", work="w", target=Path("a.png"))
    assert not journal.settle(second, mark=second.mark, sha256="d", work="v", target=Path("a.png"))
    journal.fail(first, "no", forget_target=True)
    assert journal.settle(second, mark=second.mark, sha256="d", work="v", target=Path("a.png"))


def test_equal_work_is_found_but_not_where_the_result_was_changed_on_purpose(journal: Journal) -> None:
    run, _ = queued(journal, "a.jpg", "b.jpg")
    first, second = journal.claim(run, 2)
    assert journal.same_work("w") is None
    finished(journal, first)
    finished(journal, second)
    assert [row.place.name for row in [journal.same_work("w")] if row] == ["a.jpg"]
    assert journal.same_work("w", run=run + 1) is None
    id = row_id("w", first.place)
    report = journal.report(id)
    assert report is not None
    journal.amend(id, report | {"faces": [{"rejected": True}], "target_sha256": "bb"})
    assert [row.place.name for row in [journal.same_work("w")] if row] == ["b.jpg"]
    changed, row = journal.report(id), journal.row(id)
    assert changed is not None
    assert row is not None
    assert (changed["faces"], changed["recipe"], row.target_sha256) == ([{"rejected": True}], {"seed": 0}, "bb")
    with pytest.raises(KeyError):
        journal.amend("0" * 64, report)


def test_rows_come_in_the_order_of_places_however_many_they_are(journal: Journal) -> None:
    names = [f"{number * 7919 % 1201:05d}.jpg" for number in range(1201)]
    run, _ = queued(journal, *names, b"\xff.jpg")
    for row in journal.claim(run, 2000):
        (journal.fail(row, "no") if row.number % 2 else finished(journal, row))
    rows = [row for row, _ in journal.rows(reports=False)]
    assert [row.place.name for row in rows] == [*sorted(names), os.fsdecode(b"\xff.jpg")]
    done = list(journal.rows("done"))
    assert len(done) == 601
    assert all(report is not None and report["target"] == str(row.place) for row, report in done)


def test_the_report_is_written_whole_a_line_a_photo_or_a_list(journal: Journal, tmp_path: Path) -> None:
    run, _ = queued(journal, "b.jpg", b"a\xff\n.jpg", "c.jpg")
    bad, odd, _ = journal.claim(run, 3)
    finished(journal, bad)
    journal.fail(odd, "no picture")
    lines, listed = tmp_path / "deep" / "report.jsonl", tmp_path / "report.json"
    journal.export(lines)
    journal.export(listed, lines=False)
    failed, done = (json.loads(line) for line in lines.read_text().splitlines())
    assert failed == {"source": "/scans/a\\xff\n.jpg", "target": None, "error": "no picture"}
    assert (done["target"], done["recipe"]) == ("b.jpg", {"seed": 0})
    assert json.loads(listed.read_text()) == [failed, done]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "out", "report.json"]
    with pytest.raises(JournalError, match="name a file in a folder that can be written"):
        journal.export(listed / "below.jsonl")


def test_the_newest_run_tells_its_folder_and_recipe_before_anything_is_done(journal: Journal) -> None:
    assert journal.newest() is None
    run, _ = queued(journal, "deep/in/a.jpg")
    finished(journal, journal.claim(run, 1)[0])
    run, recipe = journal.begin(), journal.recipe("other", {"seed": 7}, {"net": "ab"})
    assert journal.newest()[1] == {"seed": 0}  # it has met no photo yet
    journal.add(photo("b.jpg", root="/others"), run=run, recipe=recipe)
    row, told = journal.newest()
    assert (row.root, row.place, told) == (Path("/others"), Path("b.jpg"), {"seed": 7})
    journal.add(photo("deep/in/a.jpg"), run=run, recipe=recipe)
    assert {journal.newest()[0].root, journal.row(row_id("w", Path("deep/in/a.jpg"))).root} == {Path("/scans")}


def test_an_empty_journal_gives_an_empty_report(journal: Journal, tmp_path: Path) -> None:
    journal.export(tmp_path / "report.json", lines=False)
    journal.export(tmp_path / "report.jsonl")
    assert json.loads((tmp_path / "report.json").read_text()) == []
    assert (tmp_path / "report.jsonl").read_text() == ""


def test_one_process_at_a_time_may_change_it(journal: Journal) -> None:
    run, _ = queued(journal, "a.jpg")
    code = f"from facefix.jobs.journal import Journal; Journal.open(__import__('pathlib').Path({str(journal.out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} on " in done.stderr
    assert "is at work on this folder; wait for it, or stop it" in done.stderr
    with Journal.open(journal.out, write=False) as reader:
        assert reader.counts()["queued"] == 1
        with pytest.raises(JournalError, match="cannot be used"):
            reader.begin()
    assert len(journal.claim(run, 1)) == 1


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from facefix.jobs.journal import Journal\n"
        "journal = Journal.open(Path(sys.argv[1]), create=True)\n"
        "with journal.together(): journal._do('INSERT INTO runs (began, holder) VALUES (1, \"kept\")')\n"
        "journal._do('BEGIN'); journal._do('INSERT INTO runs (began, holder) VALUES (2, \"lost\")')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode < 0
    with Journal.open(tmp_path) as journal:
        assert journal._do("SELECT holder FROM runs") == [("kept",)]


def test_a_round_waits_for_the_disk_and_is_all_or_nothing(journal: Journal) -> None:
    with journal.together():
        assert journal._do("PRAGMA synchronous") == [(2,)]
        queued_run = journal._do("INSERT INTO runs (began, holder) VALUES (1, '') RETURNING number")

    def broken_off() -> None:
        with journal.together():
            journal._do("INSERT INTO runs (began, holder) VALUES (2, '')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert journal._do("SELECT max(number) FROM runs") == queued_run
    assert journal._do("PRAGMA journal_mode") == [("wal",)]


def marked(path: Path, pragma: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA {pragma}")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(b"no database, but long enough to be one" * 99), "the journal is damaged"),
        (lambda path: marked(path, "user_version = 99"), "got version 99; use the facefix"),
        (lambda path: marked(path, "application_id = 1"), "got another database"),
    ],
)
def test_a_journal_that_cannot_be_used_is_one_clear_line(tmp_path: Path, spoil, says: str) -> None:
    Journal.open(tmp_path, create=True).close()
    path = tmp_path / FOLDER / "journal.sqlite"
    for beside in path.parent.glob("journal.sqlite-*"):
        beside.unlink()
    spoil(path)
    with pytest.raises(JournalError) as caught:
        Journal.open(tmp_path)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(JournalError, match=r"the journal|version|database"):  # the lock was given back
        Journal.open(tmp_path)


def test_two_at_once_bring_a_journal_to_this_version(tmp_path: Path) -> None:
    Journal.open(tmp_path, create=True).close()
    with contextlib.closing(sqlite3.connect(tmp_path / FOLDER / "journal.sqlite", isolation_level=None)) as first:
        first.executescript("ALTER TABLE photos DROP COLUMN ctime_ns; PRAGMA user_version = 1; BEGIN IMMEDIATE;")
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(lambda: Journal.open(tmp_path, write=False).close())
            time.sleep(0.2)  # where it takes longer to get there, it meets the journal as it shall be
            for command in ("ALTER TABLE photos ADD ctime_ns NOT NULL DEFAULT 0", "PRAGMA user_version = 2", "COMMIT"):
                first.execute(command)
            second.result()


def test_no_journal_and_a_link_in_its_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no such journal; name the folder"):
        Journal.open(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match="got a link, which may lead out of the output folder; remove it"):
        Journal.open(tmp_path / "out", create=True)
    (tmp_path / "out" / FOLDER).unlink()
    (tmp_path / "out" / FOLDER).mkdir()
    (tmp_path / "out" / FOLDER / "journal.sqlite").symlink_to(tmp_path / "elsewhere" / "book")
    with pytest.raises(JournalError, match="got a link"):
        Journal.open(tmp_path / "out", create=True)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_claims_and_changes_go_by_index_whatever_the_journal_holds(journal: Journal) -> None:
    """What keeps claiming and finishing fast with a million rows: no statement walks through them."""
    statements: list[str] = []
    run, recipe = queued(journal, "a.jpg", "b.jpg")
    journal._connection.set_trace_callback(statements.append)
    first, second = journal.claim(run, 2)
    finished(journal, first)
    journal.fail(second, "no")
    journal.same_work("w")
    journal.add(replace(photo("a.jpg"), mark=Mark(1, 2, 3)), run=run + 1, recipe=recipe)
    journal.renew([1])
    journal._connection.set_trace_callback(None)
    looked_at = [text for text in statements if text.startswith(("SELECT", "UPDATE"))]
    assert len(looked_at) > 7
    for text in looked_at:
        plan = " / ".join(step[3] for step in journal._do(f"EXPLAIN QUERY PLAN {text}"))
        assert "SCAN" not in plan.replace("SCAN recipes", ""), f"{text}: {plan}"
        assert "TEMP B-TREE" not in plan, f"{text}: {plan}"
