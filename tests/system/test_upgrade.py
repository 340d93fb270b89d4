"""A newer version is installed over a running one, inside, by the script that people use."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol import ActivityStatus, RuntimeName
from tests.e2e.waiting import until
from tests.system.booted import CommandError
from tests.system.node import ROOT, WHEELHOUSE, Node

IGGY = RuntimeName.IGGY
SOURCE = "/usr/local/src/iggy-agent"
WHEELS = f"{SOURCE}/wheels"


def build(version: str, folder: Path, *, damage: str = "") -> Path:
    """Build a wheel of the agent as some version, and with another daemon if it is to be damaged."""
    tree = folder / f"tree-{version}"
    tree.mkdir()
    for name in ("agent", "supervisor"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    project = (ROOT / "pyproject.toml").read_text()
    (tree / "pyproject.toml").write_text(project.replace('version = "0.1.0"', f'version = "{version}"', 1))
    if damage:
        (tree / "agent/daemon.py").write_text(damage)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", str(folder), str(tree)], check=True, timeout=60)
    return next(folder.glob(f"*-{version}-*.whl"))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="iggy-upgrade-") as name:
        yield Path(name)


def bring_in(node: Node, wheel: Path) -> str:
    """Bring the sources of the installation, and a wheel, to where the node has them."""
    inside = node.system.root / SOURCE[1:]
    for name in ("systemd", "config"):
        shutil.copytree(ROOT / name, inside / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "requirements.lock", inside)
    shutil.copytree(WHEELHOUSE, inside / "wheels", dirs_exist_ok=True)
    shutil.copy(wheel, inside)
    return f"{SOURCE}/{wheel.name}"


def install(node: Node, python: str, wheel: str) -> None:
    node.system.run(
        "env", f"WHEEL={wheel}", f"WHEELHOUSE={WHEELS}", f"PYTHON={python}", f"{SOURCE}/systemd/install", "install"
    )


def versions(node: Node) -> list[str]:
    return [name.split("-")[0] for name in node.system.run("ls", "/opt/iggy-agent").stdout.split() if name != "current"]


async def test_an_upgrade_in_the_middle_of_a_restart_restarts_once(node: Node, python: str, folder: Path) -> None:
    wheel = bring_in(node, build("0.1.1", folder))
    await node.api.run(IGGY, "start")
    node.switch_faults(IGGY, "slow_start:2")
    before = len(node.births(IGGY))
    installing = asyncio.create_task(asyncio.to_thread(install, node, python, wheel))
    made = node.system.root / "opt/iggy-agent"
    await until(
        lambda: installing.done() or any(made.glob("0.1.1-*/.complete")),
        "the new environment is made",
        within=90,
        every=0.02,
    )
    activity = await node.api.dispatch(IGGY, "restart")
    await installing
    finished = await node.api.finished(activity.id, within=60)
    node.switch_faults(IGGY)
    status = await node.until_up()
    assert status["agent"]["version"] == "0.1.1"
    assert len(node.births(IGGY)) - before == 1
    assert finished.status is ActivityStatus.COMPLETED, f"{finished.code} {finished.message}"
    assert versions(node) == ["0.1.1"], "the old environment is given up once the new one has started"


async def test_an_upgrade_that_does_not_come_up_is_taken_back(node: Node, python: str, folder: Path) -> None:
    before = (await node.until_up())["agent"]["version"]
    wheel = bring_in(node, build("0.1.2", folder, damage="raise SystemExit(78)\n"))
    with pytest.raises(CommandError, match=r"cannot start 0\.1\.2"):
        install(node, python, wheel)
    assert (await node.until_up())["agent"]["version"] == before
    assert before in versions(node)
