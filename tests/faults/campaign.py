"""Runs rows one after the other, each for its share of the time."""

import random
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import Tally

Said = Callable[[str], None]


async def run(fault: Fault, seed: int, budget: Budget) -> Tally:
    """Do one class of faults on a ground of its own, which is removed afterwards.

    A row that breaks keeps what it has counted, and what broke it is counted too: it may be the agent that ended.
    """
    tally = Tally(fault.name)
    # Not below a test's own folder: the path of a unix socket may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="iggy-faults-", ignore_cleanup_errors=True) as folder:
        # A row's choices are its own: they stay the same when other rows come or go.
        ground = Ground(Path(folder), seed ^ zlib.crc32(fault.key.encode()))
        try:
            await fault.run(ground, budget, tally)
        except Exception as error:  # noqa: BLE001 - the other rows are played all the same; this one is no success
            for cause in _causes(error):
                tally.broken += 1
                cause.add_note("".join(traceback.format_exception(cause)))
                tally.fail("the row broke", cause)
    return tally


def _causes(error: Exception) -> Iterator[Exception]:
    """Take apart what several tasks raised."""
    if isinstance(error, ExceptionGroup):
        for part in error.exceptions:
            yield from _causes(part)
    else:
        yield error


def plan(faults: Sequence[Fault], seconds: float) -> list[float]:
    """Return how many seconds each row may go on for, beyond what it takes in any case, which is kept for it.

    Args:
        faults: The rows.
        seconds: For all of them.
    """
    rest = max(0.0, seconds - sum(fault.takes for fault in faults))
    shares = sum(fault.share for fault in faults)
    return [rest * fault.share / shares if shares else 0.0 for fault in faults]


async def run_all(faults: Sequence[Fault], seconds: float, seed: int, said: Said) -> list[Tally]:
    """Do them all in about so many seconds; what one leaves over, or takes more than it should, the others share.

    Args:
        faults: In this order.
        seconds: Of wall time for all of them.
        seed: Of all choices.
        said: Hears of each row when it is done.
    """
    ends = time.monotonic() + seconds
    tallies = []
    for number, fault in enumerate(faults):
        began = time.monotonic()
        tally = await run(fault, seed, Budget(plan(faults[number:], ends - began)[0]))
        tallies.append(tally)
        said(_progress(fault, tally, time.monotonic() - began))
    return tallies


def _progress(fault: Fault, tally: Tally, seconds: float) -> str:
    counted = f"injected={tally.injected} lost={tally.lost} repeated={tally.repeated} false={tally.false}"
    nothing = [] if tally.injected else [f"{fault.key}: nothing was injected, so nothing was shown"]
    return "\n".join([f"{fault.key}: {counted} seconds={seconds:.0f}", *tally.stories, *nothing])


def idle(faults: Sequence[Fault], tallies: Sequence[Tally]) -> list[str]:
    """Return the keys of the rows that injected nothing, which is no success."""
    return [fault.key for fault, tally in zip(faults, tallies, strict=True) if not tally.injected]


def chosen(faults: Iterable[Fault], wanted: Sequence[str]) -> list[Fault]:
    """Choose rows by their keys, or by the beginning of them up to a dot.

    Raises:
        ValueError: Nothing has such a key; says which there are.
    """
    faults = list(faults)
    for word in wanted:
        if not any(_is_meant(fault, word) for fault in faults):
            msg = f"cannot choose {word!r}: there are {', '.join(fault.key for fault in faults)}"
            raise ValueError(msg)
    return [fault for fault in faults if not wanted or any(_is_meant(fault, word) for word in wanted)]


def _is_meant(fault: Fault, word: str) -> bool:
    return fault.key == word or fault.key.startswith(f"{word}.")


def new_seed() -> int:
    """Draw a seed for a campaign that was not given one."""
    return random.SystemRandom().randrange(2**32)
