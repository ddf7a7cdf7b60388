"""What the tools that compare Xenolith with real Xen have in common: the command line, what is kept, and tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

Record = Callable[[Path], tuple[str, str]]
"""Runs both machines, with files in a directory: what real Xen's printed, and what Xenolith's did."""
Compare = Callable[[str, str], tuple[str, Sequence[str]]]
"""Of two recordings: the page to write, in Markdown, and the differences that nobody can explain."""


def main(about: str, record: Record, compare: Compare, arguments: list[str] | None) -> int:
    """The program whose documentation is `about`. Returns 1 if a difference has no known reason."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("output", type=Path, help="the page to write")
    parser.add_argument("--recordings", type=Path, nargs=2, metavar=("XEN", "XENOLITH"), help="compare what was saved")
    parser.add_argument("--save", type=Path, metavar="DIRECTORY", help="keep the recordings there")
    options = parser.parse_args(arguments)
    if options.recordings:
        theirs, ours = (path.read_text(errors="replace") for path in options.recordings)
    else:
        with tempfile.TemporaryDirectory() as directory:
            theirs, ours = record(Path(directory))
    if options.save:
        (options.save / "xen.txt").write_text(theirs)
        (options.save / "xenolith.txt").write_text(ours)
    page, bad = compare(theirs, ours)
    options.output.write_text(page)
    for text in bad:
        print(text, file=sys.stderr)
    return 1 if bad else 0


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
