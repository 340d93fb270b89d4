"""A newer version is installed over a running one, inside, by the script that people use."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.waiting import until
from tests.system.booted import CommandError
from tests.system.middle import ACTIONS, Begun, had_one_effect, release
from tests.system.node import ROOT, WHEELHOUSE, Node

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


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="iggy-upgrade-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def wheels(folder: Path) -> dict[str, Path]:
    """Build two versions, to go from one to the other, and one that does not come up."""
    damage = {"0.1.0": "", "0.1.1": "", "0.1.2": "raise SystemExit(78)\n"}
    with ThreadPoolExecutor() as executor:
        built = {version: executor.submit(build, version, folder, damage=daemon) for version, daemon in damage.items()}
        return {version: wheel.result() for version, wheel in built.items()}


def bring_in(node: Node, wheel: Path) -> str:
    """Bring the sources of the installation, and a wheel, to where the node has them."""
    inside = node.system.root / SOURCE[1:]
    for name in ("systemd", "config"):
        shutil.copytree(ROOT / name, inside / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "requirements.lock", inside)
    shutil.copytree(WHEELHOUSE, inside / "wheels", dirs_exist_ok=True)
    shutil.copy(wheel, inside)
    return f"{SOURCE}/{wheel.name}"


def builder(node: Node, python: str) -> str:
    """Make an interpreter with pip, which the script else makes each time."""
    if not (node.system.root / "opt/builder").exists():
        node.system.run(python, "-m", "venv", "/opt/builder")
    return "/opt/builder/bin/python"


def install(node: Node, python: str, wheel: str) -> None:
    node.system.run(
        "env",
        f"BUILD_PYTHON={builder(node, python)}",
        f"WHEEL={wheel}",
        f"WHEELHOUSE={WHEELS}",
        f"PYTHON={python}",
        f"{SOURCE}/systemd/install",
        "install",
    )


def versions(node: Node) -> list[str]:
    return [name.split("-")[0] for name in node.system.run("ls", "/opt/iggy-agent").stdout.split() if name != "current"]


def keep_environments(node: Node) -> None:
    """Bring back the environments that were made before, which the script gave up: it makes none twice."""
    keep = "mkdir -p /opt/made; cp -an /opt/iggy-agent/*-* /opt/made; cp -an /opt/made/* /opt/iggy-agent"
    node.system.run("sh", "-c", keep)


@pytest.mark.parametrize("action", ACTIONS)
async def test_an_upgrade_in_the_middle_of_an_action_lets_it_have_its_effect_once(
    node: Node, python: str, wheels: dict[str, Path], action: str
) -> None:
    running = (await node.until_up())["agent"]["version"]
    version = "0.1.1" if running == "0.1.0" else "0.1.0"
    wheel = bring_in(node, wheels[version])
    keep_environments(node)
    rule = node.system.root / "etc/polkit-1/rules.d/60-iggy-agent.rules"
    upgrade: asyncio.Task[None]

    async def almost_there() -> None:
        """The rule is written, and next the agent is restarted."""
        nonlocal upgrade
        before = rule.stat().st_mtime_ns
        upgrade = asyncio.create_task(asyncio.to_thread(install, node, python, wheel))
        await until(
            lambda: upgrade.done() or rule.stat().st_mtime_ns != before, "the rule is written", within=90, every=0.005
        )

    async def upgraded(_node: Node, _begun: Begun) -> None:
        await upgrade

    try:
        finished = await had_one_effect(node, action, upgraded, before_it=almost_there)
    finally:
        release(node)
    if action != "stop":  # a stop may be over within the old agent's grace
        assert all(one.recovered for one in finished.values())
    assert (await node.until_up())["agent"]["version"] == version
    assert versions(node) == [version], "the old environment is given up once the new one has started"


async def test_an_upgrade_that_does_not_come_up_is_taken_back(node: Node, python: str, wheels: dict[str, Path]) -> None:
    before = (await node.until_up())["agent"]["version"]
    wheel = bring_in(node, wheels["0.1.2"])
    with pytest.raises(CommandError, match=r"cannot start 0\.1\.2"):
        install(node, python, wheel)
    assert (await node.until_up())["agent"]["version"] == before
    assert before in versions(node)
