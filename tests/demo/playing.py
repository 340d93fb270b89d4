"""Runs the demo: begins, plays, counts, ends, also when a signal says so."""

import argparse
import asyncio
import contextlib
import signal
import sys

from tests.demo.ledger import Ledger
from tests.demo.story import OPTIONS, Story
from tests.demo.telling import Teller, curl_get, table, things_to_try
from tests.e2e.programs import Programs, ProgramsMissingError, find_programs, real_programs, standin_programs
from tests.e2e.rig import Rig

INTERRUPTED = 130
"""128 + SIGINT, as a shell would say."""
CHOICES = {"auto": find_programs, "real": real_programs, "standin": standin_programs}


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.demo", description="The main job, end to end, on this machine."
    )
    parser.add_argument("--keep", action="store_true", help="stay up afterwards, until Ctrl-C")
    parser.add_argument(
        "--programs",
        choices=CHOICES,
        default="auto",
        help="the runtimes; auto: real ones if both are on PATH (or IGGY_SERVER, IGGY_CONNECTORS), else stand-ins",
    )
    options = parser.parse_args()
    teller = Teller()
    try:
        return asyncio.run(_interruptible(CHOICES[options.programs](), teller, keep=options.keep))
    except ProgramsMissingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        teller.plain("demo: interrupted; everything that it had started has ended")
        return INTERRUPTED


async def _interruptible(programs: Programs, teller: Teller, *, keep: bool) -> int:
    """Play, and let a signal end it in order; a second one changes nothing, for the first is being obeyed."""
    loop = asyncio.get_running_loop()
    playing = asyncio.create_task(_play(programs, teller, keep=keep))
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            teller.plain("")
            teller.say("ending everything")
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    return await playing


async def _play(programs: Programs, teller: Teller, *, keep: bool) -> int:
    teller.say(f"runtimes: {programs.description}")
    async with Rig(programs, OPTIONS) as rig:
        await rig.start_agent()
        teller.say(f"Supervisor {rig.supervisor_url}, agent pid {rig.agent.pid}, all in {rig.folder}")
        teller.say(f"node {rig.node_id} of deployment {rig.deployment_id}; KEY={rig.api.api_key}")
        ledger = Ledger(rig)
        try:
            await Story(rig, teller, ledger).play()
        except Exception as error:  # noqa: BLE001 - whatever it is, what was seen is shown, and the exit code says no
            ledger.problems.append(f"the story broke off: {type(error).__name__}: {error}")
        listed = await rig.api.activities()
        teller.chapter("what the Supervisor lists in the end")
        teller.say(f"$ {curl_get(rig, 'activities?page=1&results=100')}")
        for line in table(listed):
            teller.plain(line)
        verdict = ledger.close(listed)
        teller.plain("")
        for problem in ledger.problems:
            teller.plain(f"NOT AS IT SHOULD BE: {problem}")
        if ledger.problems:
            teller.plain(rig.logs())
        line = verdict.line(teller.seconds)
        if keep:
            teller.plain(line)
            for text in things_to_try(rig):
                teller.plain(text)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
    if not keep:
        teller.plain(line)
    return 1 if ledger.problems else 0
