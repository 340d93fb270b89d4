"""What the demo prints: short lines with the time that has passed, a table, and commands to copy."""

import sys
import time
from collections.abc import Iterable

from tests.e2e.public_api import Activity
from tests.e2e.rig import Rig

CONFIG = '{"name": "mine", "values": {"IGGY_HTTP_MAX_REQUEST_SIZE": "8 MB"}}'
COLUMNS = ("ID", "RUNTIME", "ACTION", "STATUS", "REASON", "CREATED", "FINISHED")


class Teller:
    """Prints as it happens."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """Print a line with the time that has passed."""
        self.plain(f"[{self.seconds:5.1f} s] {text}")

    def chapter(self, title: str) -> None:
        """Begin the next part of the story."""
        self.plain("")
        self.say(f"== {title}")

    def plain(self, text: str) -> None:
        """Print a line as it is."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def curl_post(rig: Rig, path: str, body: str = "{}", *, api_key: str = "$KEY") -> str:
    """Write a POST below the deployment as a command; the body holds no single quote."""
    headers = f'-H "ld-api-key: {api_key}" -H "Content-Type: application/json"'
    return f"curl -X POST {rig.api.base}/{path} {headers} -d '{body}'"


def curl_get(rig: Rig, path: str, *, api_key: str = "$KEY") -> str:
    """Write a GET below the deployment as a command."""
    return f'curl "{rig.api.base}/{path}" -H "ld-api-key: {api_key}"'


def table(activities: Iterable[Activity]) -> list[str]:
    """Write activities as lines of a table."""
    rows = [COLUMNS, *(_row(activity) for activity in activities)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(activity: Activity) -> tuple[str, ...]:
    raw = activity.raw
    times = raw["created_at"], raw["finished_at"] or "-"
    return (str(activity.id), activity.runtime, activity.action, activity.status, activity.code or "-", *times)


def things_to_try(rig: Rig) -> list[str]:
    """Write commands for a demo that stays up."""
    key, node, agent = rig.api.api_key, rig.node, f"{sys.executable} -m agent"
    this_node = f'{{"nodes": [{rig.node_id}]}}'
    return [
        "",
        "Everything stays up until Ctrl-C. Commands to try, for example in another terminal:",
        "",
        "# restart iggy on all nodes; stop and start the connectors on this one",
        curl_post(rig, "activities/iggy/restart", api_key=key),
        curl_post(rig, "activities/connectors/stop", this_node, api_key=key),
        curl_post(rig, "activities/connectors/start", this_node, api_key=key),
        "",
        "# what became of them (activities/ID has the evidence), and the node with its latest heartbeat",
        curl_get(rig, "activities?page=1&results=10", api_key=key),
        curl_get(rig, "nodes", api_key=key),
        "",
        "# make a config; its id is in the answer, and activities/iggy/reconfigure:ID applies it",
        curl_post(rig, "configs/iggy", CONFIG, api_key=key),
        "",
        "# the agent's own view",
        f"{agent} status --socket {node.socket}",
        f"{agent} activities --socket {node.socket}",
        "",
        "# kill it whenever you like, and start it again",
        f"kill -9 {rig.agent.pid}",
        f"{agent} run --config {node.settings_file}",
        "",
    ]
