"""`python -m benchmarks [NAME ...]`: runs the benchmarks, prints a table for each, keeps the raw samples as JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import (
    boot_control_domain,
    boot_guest,
    cards,
    control_tools,
    costs,
    create_guest,
    devices,
    disks,
    guest_rates,
    hello,
    host,
    many,
    memory,
    programs,
)
from benchmarks.common import MINIMUM_RUNS, RESULTS, Report, save, text

QUESTIONS = {
    "hello": hello.run,
    "boot_guest": boot_guest.run,
    "boot_control_domain": boot_control_domain.run,
    "cards": cards.run,
    "control_tools": control_tools.run,
    "costs": costs.run,
    "create_guest": create_guest.run,
    "devices": devices.run,
    "disks": disks.run,
    "guest_rates": guest_rates.run,
    "memory": memory.run,
    "many": many.run,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs what was asked for; 0 unless a run failed, which is 1 (a mark that was missed is no failure)."""
    options = _parser().parse_args(arguments)
    reports: list[Report] = []
    described = host.describe()
    try:
        for name in options.names or QUESTIONS:
            reports.append(QUESTIONS[name](options.runs))
            print(f"{text(reports[-1])}\n", flush=True)
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        return 130
    finally:
        programs.remove()
        if reports:
            save(options.output, described, reports)
            print(f"raw samples: {options.output}", file=sys.stderr)
    return 1 if any(report.failures for report in reports) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures Xenolith against its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *QUESTIONS], help=", ".join(QUESTIONS))
    parser.add_argument("--runs", type=int, default=MINIMUM_RUNS, help="runs of each side, in turn (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "latest.json", help="raw samples (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
