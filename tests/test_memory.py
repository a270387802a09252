"""What is remembered in small files: entries of several processes, damaged files."""

import os
import threading
from pathlib import Path

import pytest

from facefix.errors import UsageError
from facefix.memory import Memory


def test_entries_come_back(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "new" / "memory.json")
    assert memory.get("a") is None
    memory.put("a", answer=42, mark=[1, 2])
    memory.put("b")
    assert Memory(memory.path).get("a") == {"answer": 42, "mark": [1, 2]}
    assert memory.get("b") == {}
    memory.put("a", answer=43)
    assert memory.get("a") == {"answer": 43}


def test_two_hands_remember_both(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory.json")
    threads = [threading.Thread(target=memory.put, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [memory.get(str(number)) for number in range(8)] == [{}] * 8
    assert sorted(os.listdir(tmp_path)) in (["memory.json"], [".memory.json.lock", "memory.json"])


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "memory.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        Memory(tmp_path / "memory.json").put("a")
    assert sorted(os.listdir(tmp_path)) in (["memory.json"], [".memory.json.lock", "memory.json"])


@pytest.mark.parametrize("content", ["{broken", "[1]"])
def test_a_damaged_file_is_an_error_only_where_it_matters(tmp_path: Path, content: str) -> None:
    path = tmp_path / "memory.json"
    path.write_text(content)
    for call in (lambda: Memory(path).get("a"), lambda: Memory(path).put("a")):
        with pytest.raises(UsageError, match=r"memory\.json: expected JSON.*delete it"):
            call()
    loose = Memory(path, strict=False)
    assert loose.get("a") is None
    loose.put("a", answer=42)
    assert loose.get("a") == {"answer": 42}
