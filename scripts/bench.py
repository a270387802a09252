"""Measured figures of facefix beside other implementations: `python scripts/bench.py PART …`.

Parts are modules `bench_*.py` beside this one; each adds its own options.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

PARTS = ("gpen",)


def main() -> int:
    """Run the chosen part; the exit status is 0 when everything required held, else 1."""
    sys.path.insert(0, str(Path(__file__).parent))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for name in PARTS:
        importlib.import_module(f"bench_{name}").add_part(parts)
    arguments = parser.parse_args()
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
