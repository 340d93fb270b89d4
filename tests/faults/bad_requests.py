"""Requests that nobody should make of the agent's own socket, and answers that no agent gives, to the agent's command.

The socket of a whole agent gets raw bytes, odd methods, targets and headers, halves of requests that stay open, and
more connections than it has room for. It answers each or hangs up, never with a 5xx, answers the next one, and in the
end holds no more files than before, and no more than a little memory. `iggy-agent status` and `activities` read answers
of other shapes, cut ones and no HTTP at all: each ends with a documented exit code and a sentence, never in a fault of
its own.
"""

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.e2e.waiting import until
from tests.faults.bad_files import run
from tests.faults.examples import each, each_live
from tests.faults.fault import Budget, Ground
from tests.faults.scripted_node import ScriptedNode
from tests.faults.spoilt import TEXTS, bodies, spoilt
from tests.faults.tally import Tally
from tests.local.conftest import ACTIVITY, CALLS, STATUS

LIVE = 30
"""Requests of a round."""
VISITORS = 100
"""Connections that are held open at once: more than there is room for."""
PATIENCE = 5.0
"""Seconds that an answer to a whole request may take on a busy machine."""
MOMENT = 0.15
"""Seconds after which a request that is no whole one is given up by its sender."""
WHOLE = b"GET /v1/status HTTP/1.1\r\nHost: agent\r\n\r\n"
GROWTH = 8 * 2**20
"""Bytes of resident memory that a row may add to an agent; hundreds of answers have to be garbage by then."""
UNKNOWN = (501, 505)
"""The answers above 499 that speak of the request: a method or a version that is not known."""

# --- requests

odd_texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20))
methods = st.sampled_from(
    ["GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "CONNECT", "get", "", "G\0T", "X" * 9000]
)
targets = st.one_of(
    st.sampled_from(
        ["/v1/status", "/v1/activities", "/v1/activities?limit=5", "/v1/activities/1", "*", "", "//", "/%00"]
    ),
    st.sampled_from(
        ["http://x/v1/status", "/v1/../v1/status", "/v1/status?" + "a=1&" * 1000, "/" + "a" * 9000, "/%ff%zz"]
    ),
    st.builds("/v1/activities?limit={}".format, odd_texts),
    st.builds("/v1/activities/{}".format, odd_texts),
    odd_texts,
)
versions = st.sampled_from(
    ["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "HTTP/x", ""]
)
headers = st.one_of(
    st.sampled_from(["Host: x", "Connection: close", "Connection: keep-alive", "Expect: 100-continue", "Expect: x"]),
    st.sampled_from(
        ["Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: x"]
    ),
    st.sampled_from(["Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Content-Encoding: gzip"]),
    st.sampled_from(
        ["Upgrade: websocket", "Upgrade: h2c", "Connection: Upgrade", "Range: bytes=0-", "X: " + "x" * 9000]
    ),
    st.sampled_from(
        ["\r\n".join(f"X-{number}: x" for number in range(500)), " folded", "no colon", ": no name", "A B: c"]
    ),
    st.builds("X: {}".format, odd_texts),
)
request_bodies = st.sampled_from(
    ["", "", "{}", "5\r\nhello\r\n0\r\n\r\n", "ffffffffffffffffff\r\n", "-1\r\n", "\0" * 5000]
)


def _request(method: str, target: str, version: str, lines: list[str], body: str, cut: float) -> bytes:
    text = "\r\n".join([f"{method} {target} {version}", *lines, "", body])
    content = text.encode("utf-8", "surrogatepass")
    return content[: max(1, round(len(content) * cut))]


requests = st.one_of(
    st.builds(
        _request,
        *(methods, targets, versions, st.lists(headers, max_size=4), request_bodies),
        st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5, 0.1]),
    ),
    st.binary(min_size=1, max_size=200),
    st.sampled_from(
        [
            WHOLE * 50,
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\r\n" * 500,
            b"\0" * 70_000,
        ]
    ),
)


async def judge_request(node: ScriptedNode, request: bytes) -> None:
    """Send bytes, and check every answer to them, and that the next one who asks is heard."""
    for status in re.findall(rb"^HTTP/1\.[01] (\d{3})", await _exchange(node.node.socket, request), re.MULTILINE):
        assert int(status) < 500 or int(status) in UNKNOWN, f"answered {status.decode()}"
    await judge_hearing(node)


async def judge_hearing(node: ScriptedNode) -> None:
    """Check that whoever asks is answered soon, and that the agent has nothing to complain of."""
    async with asyncio.timeout(PATIENCE):
        status = await node.ask()
    assert status is not None, "the agent does not answer"
    assert status["healthy"], status["conditions"]


async def _exchange(path: Path, sent: bytes) -> bytes:
    """Send bytes and read until the answer ends, or nothing comes for a moment."""
    reader, writer = await asyncio.open_unix_connection(path)
    answer = bytearray()
    try:
        with contextlib.suppress(TimeoutError, ConnectionError):  # hung up, or waited for what we do not send
            writer.write(sent)
            async with asyncio.timeout(MOMENT):
                await writer.drain()
            while True:
                async with asyncio.timeout(MOMENT):
                    more = await reader.read(65536)
                if not more:
                    break
                answer += more
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return bytes(answer)


async def crowd(node: ScriptedNode, ground: Ground, tally: Tally) -> None:
    """Hold more connections open than there is room for, each with a part of a request, and ask beside them."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(VISITORS):
            _, writer = await asyncio.open_unix_connection(node.node.socket)
            stack.callback(writer.close)
            writer.write(WHOLE[: ground.chance.randrange(len(WHOLE))])
            tally.injected += 1
        tally.cases += 1
        await judge_hearing(node)


def files_of(pid: int) -> int:
    """Count the descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory_of(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


# --- answers

good_status = {
    **STATUS,
    "runtimes": [{"runtime": "iggy", "driver": "process", "state": "running", "incarnation": "b.1.2"}],
}
good_answers = st.sampled_from(
    [
        good_status,
        {"items": [ACTIVITY, ACTIVITY]},
        {**ACTIVITY, "calls": CALLS, "evidence": {"log_tail": ["\x1b[31mpanicked"]}},
        {"error": {"code": "internal", "message": "cannot answer", "hint": "look at the log"}},
    ]
)
heads = st.sampled_from(
    [
        *("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n",) * 6,
        *(
            "HTTP/1.1 500 No\r\nContent-Length: {length}\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.0 999 x\r\n\r\n",
            "",
        ),
        *("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"),
        *("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n", "HTTP/1.1 100 Continue\r\n\r\n" * 50),
        *("HTTP/1.1 abc OK\r\n\r\n", "HTTP/1.1 200 OK\r\n" + "X: y\r\n" * 200 + "\r\n", "HTTP/1.1 200 " + "x" * 70_000),
        *("SSH-2.0-x\r\n", "\0", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n"),
    ]
)
answers = st.builds(
    lambda head, body: head.replace("{length:x}", f"{len(body):x}").replace("{length}", str(len(body))).encode() + body,
    heads,
    bodies(good_answers.flatmap(spoilt)),
)
commands = st.sampled_from([("status",), ("activities",), ("activities", "7")])
formats = st.sampled_from(["text", "json"])


@contextlib.contextmanager
def answering(path: Path) -> Iterator[list[bytes]]:
    """Answer whoever connects with the last of these, and hang up."""
    given: list[bytes] = [b""]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            while True:
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):  # it was enough for whoever asked
                    if not connection.recv(65536):
                        return
                    connection.sendall(given[-1])

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield given
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
            thread.join()


def judge_answer(path: Path, given: list[bytes], asked: tuple[tuple[str, ...], str, bytes]) -> None:
    """Check what a command makes of an answer."""
    command, shown_as, answer = asked
    given[:] = [answer]
    shown = run(*command, "--socket", str(path), "--format", shown_as)
    assert shown.code in {0, 1, 3}, (shown.code, shown.err)
    assert "Traceback" not in shown.err, shown.err
    if shown.code == 3 or not shown.out:
        assert shown.err.startswith("iggy-agent: "), "nothing was said"
    if shown_as == "json":
        said: Any = json.loads(shown.out)
        assert said["schema_version"]


async def local_api(ground: Ground, budget: Budget, tally: Tally) -> None:
    """Do the row."""
    folder = ground.folder / "node"
    folder.mkdir()
    path = ground.folder / "other.sock"
    asked = st.tuples(commands, formats, answers)
    async with ScriptedNode(folder) as node:
        node.start()
        await node.until_well()
        await each_live(ground, Tally("warming up"), "", requests, lambda request: judge_request(node, request), LIVE)
        pid, files, memory = node.agent.pid, files_of(node.agent.pid), memory_of(node.agent.pid)
        with answering(path) as given:

            def judge_command() -> None:
                story = "a bad answer to the command"
                each(ground, Budget(0), tally, story, asked, lambda answer: judge_answer(path, given, answer))

            while budget.more():
                await each_live(
                    ground, tally, "a bad request", requests, lambda request: judge_request(node, request), LIVE
                )
                await crowd(node, ground, tally)
                await asyncio.to_thread(judge_command)
        await until(lambda: files_of(pid) <= files + 3, "the agent holds no more files than before")
        grown = memory_of(pid) - memory
        tally.notes.append(f"the agent's resident memory grew by {grown / 2**20:.1f} MiB")
        if grown > GROWTH:
            tally.fail("memory", AssertionError(f"it grew by {grown} bytes"))
