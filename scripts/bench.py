"""Measured figures of facefix beside other implementations: `python scripts/bench.py PART …`.

    gpen   the network beside the published code and ONNX Runtime
    photo  everything but the networks beside facexlib's align and paste
    archive  a run over many photos beside a bare loop around the API; the journal
    inpaint  LaMa beside spandrel's: a pass, a refinement step, memory

Each part is a module with options of its own: `python scripts/bench.py PART --help`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from facefix.errors import FacefixError

PARTS = {"gpen": "bench_gpen", "photo": "bench_paste", "archive": "bench_archive", "inpaint": "bench_inpaint"}


def main(argv: list[str]) -> int:
    """Run the part that is named first; the exit status is 0 when everything required held."""
    if not argv or argv[0] not in PARTS:
        print(__doc__)
        return 0 if argv in (["-h"], ["--help"]) else 2
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        status: int = importlib.import_module(PARTS[argv[0]]).main(argv[1:])
    except FacefixError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
