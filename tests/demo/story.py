"""What happens in the demo, in order; each part checks what it shows."""

import asyncio
import signal

from agent.protocol import ActivityStatus, ReasonCode, RuntimeName
from tests.demo.ledger import Ledger
from tests.demo.telling import Teller, curl_post
from tests.e2e.node_settings import Options
from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
READY_TIMEOUT = 4.0
OPTIONS = Options(ready_timeout=READY_TIMEOUT, stable_for=0.3, attempt_timeout=1.0)
AWAY = 1.5
"""Seconds that the Supervisor stays away after the agent has a result for it."""
KILL_ATTEMPTS = 3
SIZE = "IGGY_HTTP_MAX_REQUEST_SIZE"


class Story:
    """The demo on a rig whose agent runs."""

    def __init__(self, rig: Rig, teller: Teller, ledger: Ledger) -> None:
        self._rig = rig
        self._teller = teller
        self._ledger = ledger

    async def play(self) -> None:
        """Play all of it; what is not as it should be is noted in the ledger.

        Raises:
            TimeoutError: Something that was waited for did not happen.
        """
        await self._all_actions()
        await self._reconfigure()
        await self._refuse_bad_configs()
        await self._roll_back()
        await self._kill_the_agent_before_the_effect()
        await self._kill_the_agent_after_the_effect()
        await self._lose_the_supervisor()

    # --- what goes well

    async def _all_actions(self) -> None:
        self._teller.chapter("start, stop and restart, of both runtimes")
        for runtime in RuntimeName:
            self._teller.say(f"$ {curl_post(self._rig, f'activities/{runtime}/start')}")
            await self._act(runtime, "start", births=1)
        self._teller.say("stop both; their lanes run side by side")
        await asyncio.gather(*(self._act(runtime, "stop") for runtime in RuntimeName))
        for runtime in RuntimeName:
            self._ledger.check(not self._rig.last_birth(runtime).alive, f"{runtime} was stopped, and still runs")
        for action in ("start", "restart"):
            for runtime in RuntimeName:
                await self._act(runtime, action, births=1)

    async def _reconfigure(self) -> None:
        self._teller.chapter("reconfigure both: a value for one, a file for the other")
        await self._apply(IGGY, values={SIZE: "4 MB"})
        await self._apply(CONNECTORS, files={"config.toml": self._rig.node.connectors_toml(metrics=True)})
        size = self._rig.last_birth(IGGY).environment.get(SIZE)
        self._ledger.check(size == "4 MB", f"iggy was given {SIZE}={size}, not 4 MB")
        path = self._rig.last_birth(CONNECTORS).environment.get("IGGY_CONNECTORS_CONFIG_PATH", "")
        self._teller.say(f"iggy has {SIZE}={size}, connectors reads …/{'/'.join(path.split('/')[-4:])}")
        self._ledger.check("/current/" in path, f"connectors was given {path} as its config, not the new one")

    # --- what is refused, and what is taken back

    async def _refuse_bad_configs(self) -> None:
        self._teller.chapter("bad configs: the agent refuses them before anything is touched")
        before = [self._running(runtime) for runtime in RuntimeName]
        bad_file = await self._rig.api.create_config(IGGY, "broken", files={"config.toml": "[http\nenabled = true"})
        bad_key = await self._rig.api.create_config(CONNECTORS, "foreign", values={"LD_PRELOAD": "/tmp/evil.so"})
        for runtime, config_id in ((IGGY, bad_file), (CONNECTORS, bad_key)):
            activity = await self._act(runtime, f"reconfigure:{config_id}", code=ReasonCode.CONFIG_INVALID)
            self._says(activity)
            self._check_outcome(activity, "not_applied")
        after = [self._running(runtime) for runtime in RuntimeName]
        self._ledger.check(before == after, f"a refused config touched something: {before} became {after}")

    async def _roll_back(self) -> None:
        self._teller.chapter("a config that starts and never gets ready: rolled back to the last one that was")
        config_id = await self._rig.api.create_config(IGGY, "silent", values={"IGGY_HTTP_ENABLED": "false"})
        activity = await self._act(IGGY, f"reconfigure:{config_id}", births=2, code=ReasonCode.ROLLED_BACK)
        self._says(activity)
        self._check_outcome(activity, "rolled_back")
        environment = self._rig.last_birth(IGGY).environment
        restored = environment.get(SIZE) == "4 MB" and "IGGY_HTTP_ENABLED" not in environment
        self._ledger.check(restored, "after the rollback, iggy does not run with its last good config")
        self._ledger.check(self._rig.last_birth(IGGY).alive, "after the rollback, iggy does not run")
        self._teller.say(f"iggy runs with {SIZE}={environment.get(SIZE)} again")

    # --- what breaks on the way

    async def _kill_the_agent_before_the_effect(self) -> None:
        self._teller.chapter("kill -9 of the agent in the middle of a restart: iggy is told to stop, not yet started")
        run = self._rig.last_birth(IGGY)
        run.send(signal.SIGSTOP)  # frozen, it takes any time to stop, so that the kill hits the middle
        activity = await self._dispatch(IGGY, "restart", births=1)
        await self._rig.until_called(activity.id, "stop")
        self._kill_agent()
        run.send(signal.SIGCONT)
        recovered = (await self._recover(activity)).recovered
        self._ledger.check(recovered, f"activity {activity.id} was not finished by recovery")

    async def _kill_the_agent_after_the_effect(self) -> None:
        self._teller.chapter("kill -9 when the new run of connectors is there, and not yet seen ready")
        for _ in range(KILL_ATTEMPTS):
            activity = await self._dispatch(CONNECTORS, "restart", births=1)
            await self._rig.until_born(CONNECTORS, self._ledger.births[CONNECTORS])
            self._kill_agent()
            if (await self._recover(activity)).recovered:
                return
            self._teller.say("the agent was done before the kill; once more")
        self._ledger.check(fact=False, problem=f"the agent was done before the kill {KILL_ATTEMPTS} times")

    async def _recover(self, activity: Activity) -> Activity:
        await self._rig.start_agent()
        self._teller.say(f"agent started again, pid {self._rig.agent.pid}")
        finished = await self._finish(activity)
        if finished.recovered:
            self._teller.say("done once, reported once: recovered=true")
        return finished

    async def _lose_the_supervisor(self) -> None:
        self._teller.chapter("the Supervisor goes away before it has the report")
        run = self._rig.last_birth(IGGY)
        run.send(signal.SIGSTOP)  # so that the report cannot be faster than the kill
        activity = await self._dispatch(IGGY, "restart", births=1)
        await self._rig.until_called(activity.id, "stop")
        self._rig.supervisor.kill()
        self._teller.say("Supervisor killed")
        run.send(signal.SIGCONT)
        row = await self._rig.until_journaled(activity.id, "finished", "reported")
        self._ledger.check(row["status"] == "completed", f"the agent alone did not complete it: {row}")
        self._teller.say(
            f"the agent has completed it alone, and keeps the report; {AWAY:g} s more without a Supervisor"
        )
        await asyncio.sleep(AWAY)
        row = await self._rig.until_journaled(activity.id, "finished", "reported")
        self._ledger.check(row["state"] == "finished", "the agent thinks that it has reported, to nobody")
        await self._rig.start_supervisor()
        self._teller.say("Supervisor started again")
        await self._finish(activity)

    # --- how it is done

    async def _act(
        self, runtime: RuntimeName, action: str, *, births: int = 0, code: ReasonCode | None = None
    ) -> Activity:
        return await self._finish(await self._dispatch(runtime, action, births=births, code=code))

    async def _dispatch(
        self, runtime: RuntimeName, action: str, *, births: int = 0, code: ReasonCode | None = None
    ) -> Activity:
        """Dispatch an action that starts the runtime so many times, and ends as completed or with a code."""
        activity = await self._rig.api.dispatch(runtime, action)
        status = ActivityStatus.REJECTED if code else ActivityStatus.COMPLETED
        self._ledger.results[activity.id] = status, code and str(code)
        self._ledger.births[runtime] += births
        return activity

    async def _finish(self, activity: Activity) -> Activity:
        began = self._teller.seconds
        finished = await self._rig.api.finished(activity.id)
        self._ledger.judge(finished)
        result = f"{finished.status} {finished.code or ''}".strip()
        run = f"run {len(self._rig.births(RuntimeName(finished.runtime)))}"
        took = f"{self._teller.seconds - began:.1f} s"
        self._teller.say(f"{finished.runtime} {finished.action}: {result} after {took} ({run} of {finished.runtime})")
        return finished

    async def _apply(
        self, runtime: RuntimeName, values: dict[str, str] | None = None, files: dict[str, str] | None = None
    ) -> None:
        config_id = await self._rig.api.create_config(runtime, "demo", values=values, files=files)
        self._check_outcome(await self._act(runtime, f"reconfigure:{config_id}", births=1), "applied")

    def _check_outcome(self, activity: Activity, outcome: str) -> None:
        found = activity.evidence.get("outcome")
        self._ledger.check(found == outcome, f"activity {activity.id} has the outcome {found}, not {outcome}")

    def _running(self, runtime: RuntimeName) -> tuple[int, str, list[str]]:
        """Read what a refused config must not change: the run, and the configs on the disk."""
        folder = self._rig.node.state_dir / "runtimes" / runtime
        releases = sorted(release.name for release in (folder / "releases").iterdir())
        return self._rig.last_birth(runtime).pid, str((folder / "current").readlink()), releases

    def _says(self, activity: Activity) -> None:
        self._teller.say(f'  "{activity.message}"')

    def _kill_agent(self) -> None:
        pid = self._rig.agent.pid
        self._rig.agent.kill()
        self._teller.say(f"agent killed, pid {pid}")
