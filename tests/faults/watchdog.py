"""The agent hangs for longer than the watchdog of its unit allows: SIGSTOP, and nobody lets it go on.

It is the installed service, on a systemd that is booted for the row, whose unit has a watchdog of a few seconds. It is
stopped in the middle of an action of both runtimes, which are units too; systemd ends it, and starts it again. What it
was doing is done once, and reported.
"""

import asyncio

from tests.e2e.programs import standin_programs
from tests.e2e.waiting import until
from tests.faults.fault import Budget, Fault, Ground
from tests.faults.tally import LostError, Tally
from tests.system.booted import system_python
from tests.system.installed import lacks, mounted, up
from tests.system.middle import ACTIONS, Begun, had_one_effect
from tests.system.node import Node

DROP_IN = "etc/systemd/system/iggy-agent.service.d/watchdog.conf"
IMPATIENT = "[Service]\nWatchdogSec=3\nRestartSec=100ms\n"


async def hang_the_agent(node: Node, _begun: Begun) -> None:
    """Stop it, and wait until systemd has started another one."""
    pid = node.agent("MainPID")["MainPID"]
    node.system.run("kill", "-STOP", pid)
    await until(lambda: node.agent("MainPID")["MainPID"] not in {pid, "0"}, "systemd starts it again", every=0.1)


async def hangs(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Hang in each action, again and again."""
    with mounted() as system:
        async with up(system, str(system_python()), standin_programs()) as node:
            system.write(DROP_IN, IMPATIENT)
            system.run("systemctl", "daemon-reload")
            system.run("systemctl", "restart", "iggy-agent")
            await node.until_up()
            for action in budget.each(ACTIONS, ground.chance):
                await _hang_in(node, action, tally)


async def _hang_in(node: Node, action: str, tally: Tally) -> None:
    effects = 0 if action == "stop" else 2
    tally.cases += 2
    tally.reports_expected += 2
    tally.effects_expected += effects
    try:
        finished = await had_one_effect(node, action, hang_the_agent)
    except (AssertionError, TimeoutError) as error:
        error.add_note(await asyncio.to_thread(node.system.journal, "iggy-agent"))
        tally.fail(f"{action}, and it hangs", error)
        return
    tally.injected += 1
    tally.reports_seen += len(finished)
    tally.effects_seen += effects
    if not all(one.recovered for one in finished.values()):
        tally.fail(action, LostError(f"no other agent finished it: {[one.raw for one in finished.values()]}"))


FAULTS = (Fault("pause.watchdog", "SIGSTOP of the agent past its watchdog", hangs, 0.5, lacks, takes=55.0),)
