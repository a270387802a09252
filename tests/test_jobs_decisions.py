"""Files of decisions that did not come from the board, or not whole."""

from pathlib import Path

import pytest

from facefix.errors import UsageError
from facefix.jobs import review


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("<html>", "got no JSON"),
        ("[]", "got other JSON"),
        ('{"facefix": "decisions", "version": 2, "decisions": []}', "version 1, got 2"),
        ('{"facefix": "decisions", "version": 1, "decisions": {}}', "got other JSON"),
        *(
            (
                f'{{"facefix": "decisions", "version": 1, "decisions": [{entry}]}}',
                "each with id, face and accept or rej",
            )
            for entry in (
                "7",
                '{"id": "a", "face": "1", "decision": "accept"}',
                '{"id": "a", "face": true, "decision": "accept"}',
                '{"id": "a", "face": 1, "decision": "maybe"}',
                '{"face": 1, "decision": "accept"}',
            )
        ),
    ],
)
def test_what_is_no_file_of_decisions_is_refused_in_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "decisions.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        review.read_decisions(path)
    assert "\n" not in str(caught.value)
