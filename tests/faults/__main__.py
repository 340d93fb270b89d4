"""`make faults`: the whole campaign, and the table of what it found.

Its last line is `faults: injected=N lost=N repeated=N false=N seconds=S`; it ends with 1 when anything was lost,
repeated or false, or when a row injected nothing; with 2, before anything was done, when a row cannot be done here.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from tests.faults import campaign
from tests.faults.catalogue import FAULTS
from tests.faults.fault import Fault, missing
from tests.faults.tally import Tally, last_line, table

MINUTES = 40.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it, and print."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        faults = campaign.chosen(FAULTS, options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        more = campaign.plan(faults, options.minutes * 60)
        for fault, seconds in zip(faults, more, strict=True):
            print(f"{fault.key:24} {fault.takes + seconds:4.0f} s  {fault.name}")
        return 0
    if lacks := missing(faults):
        for lack, keys in lacks.items():
            print(f"cannot run {', '.join(keys)}; missing: {lack}", file=sys.stderr)
        print("hint: install it, or choose other rows with --only (--list names them)", file=sys.stderr)
        return 2
    # What this process does itself, such as enrolling nodes, is not what is to be read here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    seed = campaign.new_seed() if options.seed is None else options.seed
    print(f"{len(faults)} kinds of faults in about {options.minutes:g} minutes; --seed {seed}", flush=True)
    began = time.monotonic()
    tallies = asyncio.run(_run(faults, options.minutes * 60, seed))
    if options.rows is not None:
        options.rows.write_text(json.dumps([tally.as_json() for tally in tallies]), encoding="utf-8")
    print()
    print(table(tallies))
    print()
    for tally in tallies:
        for note in tally.notes:
            print(f"{tally.fault}: {note}")
    if keys := campaign.idle(faults, tallies):
        print(f"these rows injected nothing, so the campaign failed: {', '.join(keys)}")
    print(last_line(tallies, time.monotonic() - began), flush=True)
    return 0 if all(tally.good for tally in tallies) else 1


async def _run(faults: Sequence[Fault], seconds: float, seed: int) -> list[Tally]:
    return await campaign.run_all(faults, seconds, seed, lambda text: print(text, flush=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Run the fault campaign.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"wall time of it all (default {MINUTES:g})")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KEY", help="this row, or these (kill, network.drop); repeatable"
    )
    parser.add_argument("--seed", type=int, help="of all choices (default: a new one, which is printed)")
    parser.add_argument("--list", action="store_true", help="list the rows with the seconds that each gets, and end")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="write the rows as JSON too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
