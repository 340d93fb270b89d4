"""Two agents with the identity of one node, and a dead one that is taken for the newer."""

from pathlib import Path

from agent.conditions import Conditions
from agent.journal import Journal
from agent.link.instances import Instances
from tests.fakes.supervisor import FakeSupervisor, activity
from tests.link.conftest import Node, a_node, eventually, running


async def test_two_agents_with_one_identity_only_the_newer_one_goes_on(
    node: Node, supervisor: FakeSupervisor, journal: Journal
) -> None:
    node.pace.poll_wait = 0.1
    async with (
        running(node.receiver().run()),
        a_node(supervisor, journal, Conditions(), instance="instance-2") as clone,
    ):
        await eventually(lambda: supervisor.count("activities") > 2)
        receiver = clone.receiver()
        async with running(receiver.run()):
            await eventually(lambda: not node.standing.permitted)
            await eventually(lambda: receiver.sweeps == 1)
        assert clone.standing.permitted
    assert "identity_in_use" in node.conditions


async def test_a_late_request_of_a_dead_agent_of_this_node_does_not_end_the_living_one(
    supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    dead = await Instances.open(tmp_path)
    living = await Instances.open(tmp_path)
    async with a_node(supervisor, journal, conditions, instance=living.current, renew=living.renew) as node:
        receiver = node.receiver()
        node.pace.poll_wait = 0.1
        async with running(receiver.run(), node.reporter().run(), node.lane()):
            await eventually(lambda: supervisor.count("activities") > 2)
            supervisor.instances.append(dead.current)
            await supervisor.dispatch(activity(1))
            await eventually(lambda: activity(1)["id"] in supervisor.reports)
        assert node.standing.permitted
    assert "identity_in_use" not in conditions
    assert supervisor.instances[-1] == living.current
