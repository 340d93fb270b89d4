"""Images made here, without a registry: a base of this machine's Python, the agent's own by the Dockerfile, stand-ins.

The base is what `BASE` of the Dockerfile is for: a Python with pip and openssl, and a shell (a static busybox).
"""

import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import docker
import pip
import pydantic_core
import pytest

from tests.runtimes.engine_rig import static_busybox
from tests.system.booted import system_python

ROOT = Path(__file__).resolve().parents[2]
BASE, AGENT = "iggy-base:test", "iggy-agent:test"
IGGY, CONNECTORS, BOTH = "iggy-standin:test", "iggy-connectors-standin:test", "iggy-agent-with-standins:test"
PATH = "/usr/local/bin:/usr/bin:/bin"
APPLETS = (
    "sh",
    "cat",
    "chmod",
    "chown",
    "cp",
    "echo",
    "env",
    "false",
    "id",
    "ls",
    "mkdir",
    "mv",
    "rm",
    "sleep",
    "test",
    "true",
)
UNUSED = (
    "config-",
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "pydoc_data",
    "dist-packages",
    "site-packages",
)
"""Parts of a standard library that nothing here needs, by the beginning of their names."""
FACTS = """
import json, sys, sysconfig
print(json.dumps([sys.executable, sysconfig.get_path('stdlib'), sys.version_info[:2]]))
"""


STANDINS = f"""\
FROM {BASE} AS programs
COPY opt /opt
COPY usr /usr
RUN mkdir -m 1777 /births && mkdir -p /etc/iggy/connectors
ENV STANDIN_STARTS_FILE=/births/starts.jsonl STANDIN_FAULTS_FILE=/births/faults
FROM programs AS iggy
ENTRYPOINT ["iggy-server"]
FROM programs AS connectors
ENTRYPOINT ["iggy-connectors"]
FROM {AGENT} AS both
COPY --from=programs /opt/tests /opt/tests
COPY --from=programs /usr/local /usr/local
COPY --from=programs /etc/iggy /etc/iggy
"""


def make_base(api: docker.APIClient) -> None:
    """Make the base image, of this machine's files."""
    api.import_image_from_data(_base_files(), repository="iggy-base", tag="test", changes=[f"ENV PATH={PATH}"])


def build_agent(api: docker.APIClient) -> None:
    """Build the Dockerfile, with no network.

    Raises:
        AssertionError: A step failed; with what was printed.
    """
    _build(api, AGENT, path=str(ROOT), buildargs={"BASE": BASE, "PIP_NO_INDEX": "1"})


def make_standins(api: docker.APIClient) -> None:
    """Make images of the stand-ins: of each by itself, and of both beside the agent, as a user's own image would be."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in sorted((ROOT / "tests" / "standins").glob("*.py")):
            tar.add(file, f"opt/tests/standins/{file.name}")
        for name in ("iggy-server", "iggy-connectors"):
            script = f'#!/bin/sh\nexec python3 -I -S /opt/tests/standins {name} "$@"\n'
            _add_text(tar, f"usr/local/bin/{name}", script, mode=0o755)
        _add_text(tar, "Dockerfile", STANDINS)
    context = buffer.getvalue()
    for tag, target in ((IGGY, "iggy"), (CONNECTORS, "connectors"), (BOTH, "both")):
        _build(api, tag, fileobj=io.BytesIO(context), custom_context=True, target=target)


def _build(api: docker.APIClient, tag: str, **how: Any) -> None:
    said = [
        line.get("stream") or str(line.get("error") or "")
        for line in api.build(tag=tag, network_mode="none", decode=True, rm=True, forcerm=True, **how)
    ]
    assert api.images(tag), "".join(said)[-4000:]


# --- the base's files


def _base_files() -> bytes:
    busybox, python = static_busybox(), system_python()
    assert busybox is not None
    assert python is not None, "there is no Python that an image could be made of (Debian: python3-venv)"
    executable, stdlib, version = json.loads(subprocess.check_output([python, "-I", "-c", FACTS], text=True))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        programs = [Path(executable).resolve(), Path("/usr/bin/openssl")]
        tar.add(programs[0], str(programs[0])[1:])
        tar.add(programs[1], "usr/bin/openssl")
        for name in {str(programs[0].with_name("python3")), f"{programs[0].parent}/python{version[0]}.{version[1]}"}:
            if name != str(programs[0]):
                _add_link(tar, name[1:], programs[0].name)
        tar.add(stdlib, stdlib[1:], filter=_is_needed)
        compiled = [*Path(stdlib).glob("lib-dynload/*.so"), *Path(pydantic_core.__file__).parent.glob("*.so")]
        for library in sorted({*_libraries(*programs, *compiled)}):
            tar.add(library, library[1:])
        tar.add(Path(pip.__file__).parent, f"{_third_party(python)[1:]}/pip", filter=_without_caches)
        tar.add(busybox, "bin/busybox")
        for applet in APPLETS:
            _add_link(tar, f"bin/{applet}", "busybox")
        for name in ("tmp", "etc", "run", "var/lib"):
            _add_folder(tar, name, mode=0o1777 if name == "tmp" else 0o755)
        _add_text(tar, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        _add_text(tar, "etc/group", "root:x:0:\n")
    return buffer.getvalue()


def _third_party(python: str) -> str:
    """Return where a bare Python looks for packages that its distribution brought."""
    paths = json.loads(
        subprocess.check_output([python, "-I", "-c", "import json, sys; print(json.dumps(sys.path))"], text=True)
    )
    return str(next(path for path in reversed(paths) if path.endswith("-packages")))


def _libraries(*programs: Path) -> Iterator[str]:
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    for line in said.splitlines():
        if found := re.match(r"\s+(?:\S+ => )?(/\S+) \(0x", line):
            yield found[1]


def _is_needed(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = entry.name.rpartition("/")[2]
    return None if name.startswith(UNUSED) else entry


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name.endswith("__pycache__") else entry


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, target
    tar.addfile(link)


def _add_folder(tar: tarfile.TarFile, name: str, *, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    tar.addfile(entry)


def _add_text(tar: tarfile.TarFile, name: str, text: str, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size = mode, len(text)
    tar.addfile(entry, io.BytesIO(text.encode()))


def give_up(lack: str) -> NoReturn:
    """Skip a test for what is missing here; in CI that is a failure."""
    message = f"images of the agent cannot be made here; missing: {lack}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
