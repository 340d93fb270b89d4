"""TLS is verified: by a private CA where the settings name one, and never not at all."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from agent.conditions import Conditions
from agent.errors import SupervisorError
from agent.journal import Journal
from agent.link.failures import Failure
from tests.fakes.supervisor import FakeSupervisor
from tests.link.conftest import Node, a_node


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def write(ca: trustme.CA, folder: Path) -> Path:
    path = folder / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return path


@asynccontextmanager
async def a_tls_node(
    ca: trustme.CA, journal: Journal, conditions: Conditions, ca_file: Path | None, *names: str, **validity: Any
) -> AsyncIterator[Node]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names, **validity).configure_cert(context)
    async with FakeSupervisor(context) as supervisor, a_node(supervisor, journal, conditions, ca_file=ca_file) as node:
        yield node


async def failed(node: Node) -> SupervisorError:
    with pytest.raises(SupervisorError) as caught:
        await node.client.activities(after=0, wait=0, limit=1)
    assert caught.value.code == Failure.TLS
    assert node.supervisor.requests == []
    return caught.value


async def test_a_private_ca_is_trusted_when_it_is_named(
    ca: trustme.CA, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    async with a_tls_node(ca, journal, conditions, write(ca, tmp_path), "127.0.0.1") as node:
        assert (await node.client.activities(after=0, wait=0, limit=1)).items == []


async def test_the_systems_cas_do_not_know_a_private_one(
    ca: trustme.CA, journal: Journal, conditions: Conditions
) -> None:
    async with a_tls_node(ca, journal, conditions, None, "127.0.0.1") as node:
        error = await failed(node)
    assert "supervisor.ca_file" in str(error.hint)
    assert "certificate was not accepted" in conditions.all()[0].message


async def test_another_ca_is_not_trusted(
    ca: trustme.CA, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    async with a_tls_node(ca, journal, conditions, write(trustme.CA(), tmp_path), "127.0.0.1") as node:
        await failed(node)


@pytest.mark.parametrize("name", ["127.0.0.2", "supervisor.example.com"])
async def test_a_certificate_for_another_host_is_not_accepted(
    ca: trustme.CA, journal: Journal, conditions: Conditions, tmp_path: Path, name: str
) -> None:
    async with a_tls_node(ca, journal, conditions, write(ca, tmp_path), name) as node:
        error = await failed(node)
    assert "has to name 127.0.0.1" in str(error.hint)


async def test_an_expired_certificate_is_not_accepted(
    ca: trustme.CA, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    validity = {"not_before": now - timedelta(days=9), "not_after": now - timedelta(days=2)}
    async with a_tls_node(ca, journal, conditions, write(ca, tmp_path), "127.0.0.1", **validity) as node:
        error = await failed(node)
    assert "expired" in error.message
    assert "clock" in str(error.hint)


async def test_a_port_without_tls_says_so(
    ca: trustme.CA, supervisor: FakeSupervisor, journal: Journal, conditions: Conditions, tmp_path: Path
) -> None:
    url = supervisor.url.replace("http:", "https:")
    async with a_node(supervisor, journal, conditions, url=url, ca_file=write(ca, tmp_path)) as node:
        error = await failed(node)
    assert "TLS" in error.message
