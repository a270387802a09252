"""How an archive's run stands, as the page shows it: HTML in which all names and reasons are text."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facefix.errors import shown
from facefix.web.archive import Archive
from facefix.web.archive_run import Standing
from facefix.web.folders import below, name_of

_TITLES = {
    "starting": "getting ready",
    "running": "restoring",
    "pausing": "finishing the photos in hand, then it pauses",
    "paused": "paused",
    "finished": "done",
    "broken": "stopped",
}


def told_of_run(source: Path, out: Path, standing: Standing, archive: Archive) -> str:
    """How a run stands, as HTML."""
    counts, failed = standing.counts, standing.counts["failed"] + standing.counts["closed"]
    names = f"{name_of(source, archive.input_dir)} → {name_of(out, archive.output_dir)}"
    rate = standing.finished / standing.seconds if standing.seconds > 0 else 0.0
    facts = [
        ("Photos done", f"{counts['done'] + counts['copied']:,} of {standing.wanted:,}"),
        ("Faces restored", f"{standing.faces:,}"),
        ("Could not be done", f"{failed:,}"),
    ]
    if counts["before"]:
        facts.append(("Done before", f"{counts['before']:,}"))
    if counts["failed before"]:
        facts.append(("Failed before", f"{counts['failed before']:,}"))
    if standing.finished:
        facts.append(("Rate", _rate(rate)))
    if standing.finished and standing.state == "running":
        facts.append(("Time left", _time((standing.wanted - standing.finished) / rate)))
    bar = _bar(standing.finished, standing.wanted, known=not standing.alive)
    problem = ""
    if standing.problem:
        text = below(archive.output_dir, below(archive.input_dir, standing.problem))
        problem = f"<p class='trouble'>{html.escape(text)}</p>"
    elif standing.state == "finished" and not counts["met"] and not counts["closed"]:
        problem = "<p class='trouble'>expected photos in this folder, got none; choose another</p>"
    lines = _lines("Could not be done", standing.failures, failed + counts["failed before"])
    return _panel(names, _TITLES[standing.state], bar, facts, problem + lines + _lines("Notes", standing.remarks, 0))


def report_of(source: Path, out: Path, standing: Standing, archive: Archive) -> dict[str, Any]:
    """How a run stands, as JSON."""
    counts = standing.counts
    return {
        "photos": name_of(source, archive.input_dir),
        "results": name_of(out, archive.output_dir),
        "state": standing.state,
        "done": counts["done"] + counts["copied"],
        "failed": counts["failed"] + counts["closed"],
        "done_before": counts["before"],
        "failed_before": counts["failed before"],
        "met": counts["met"],
        "faces": standing.faces,
        "seconds": round(standing.seconds, 3),
        "failures": list(standing.failures),
        "problem": below(archive.output_dir, below(archive.input_dir, standing.problem)),
    }


def told_of_journal(out: Path, counts: Mapping[str, int], failures: list[str], archive: Archive) -> str:
    """What a journal says, as HTML."""
    total, waiting = sum(counts.values()), counts["queued"] + counts["running"]
    facts = [("Photos done", f"{counts['done']:,} of {total:,}"), ("Could not be done", f"{counts['failed']:,}")]
    state = f"{waiting:,} still to be done" if waiting else "done"
    bar = _bar(counts["done"] + counts["failed"], total)
    lines = _lines("Could not be done", failures, counts["failed"])
    return _panel(name_of(out, archive.output_dir), state, bar, facts, lines)


def told_of_deed(line: str, out: Path) -> str:
    """What became of decisions and how they are undone, as HTML."""
    again = (
        "“Undo what was carried out” brings it back as it was; so does deciding the other way on the board, or "
        f"<code>facefix undo {html.escape(shown(Path(out.name)))} PHOTO --face N</code> on the server, with --redo for "
        "the other way."
    )
    return f"<p role='status'><strong>{html.escape(line)}.</strong> <span>{again}</span></p>"


def _panel(names: str, state: str, bar: str, facts: list[tuple[str, str]], more: str) -> str:
    told = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts)
    head = f"<h3 role='status'>{html.escape(names)} <span>— {html.escape(state)}</span></h3>"
    return f"{head}{bar}<dl>{told}</dl>{more}"


def _bar(done: int, total: int, known: bool = True) -> str:
    """How much of it is done; with nothing to be done, all of it, but none as long as it is not known what there is."""
    percent = round(100 * done / total) if total else 100 * known
    told = f"role='progressbar' aria-label='Photos' aria-valuenow='{percent}' aria-valuetext='{done:,} of {total:,}'"
    return f"<div class='bar' {told}><span style='width: {percent}%'></span></div>"


def _lines(title: str, lines: tuple[str, ...] | list[str], count: int) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    more = f"<p>and {count - len(lines):,} more; the report in the results' folder names them all</p>"
    return (
        f"<div class='trouble'><strong>{title}</strong><ul class='lines' tabindex='0'>{items}</ul>"
        + (more if count > len(lines) else "")
        + "</div>"
    )


def _rate(photos_s: float) -> str:
    return f"{photos_s:.2f} photos/s" if photos_s >= 0.1 else f"{photos_s * 60:.1f} photos/min"


def _time(seconds: float) -> str:
    """About how long, in words."""
    if seconds < 60:
        return f"about {math.ceil(seconds / 5) * 5} s" if seconds > 2 else "a moment"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min"
    return f"about {minutes / 60:.0f} h" if minutes < 48 * 60 else f"about {minutes / 1440:.0f} days"
