"""A real systemd, booted in a container on a copy of this machine's files that is thrown away afterwards.

The files are an overlay in memory, in a mount namespace that ends with its last process; every process here is ended
with this one, whatever becomes of it (prctl(2), PR_SET_PDEATHSIG). The network is the machine's own.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.system.control_groups import make_groups, remove_groups

BOOT_TIMEOUT = 60.0
COMMAND_TIMEOUT = 60.0
END_TIMEOUT = 20.0
SETTLED = ("running", "degraded")
"""What `systemctl is-system-running` says of a system that has booted."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
"""Of a command inside."""
POLKIT = Path("/usr/lib/polkit-1/polkitd")
TOOLS = ("systemd-nspawn", "systemctl", "dbus-daemon", "nsenter", "unshare", "setpriv", "mount", "make")

MOUNT = """
set -e
mount -t tmpfs -o mode=0755 tmpfs "$1"
top="$1/root"
mkdir "$1/upper" "$1/work" "$top"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$top"
: >"$top/etc/machine-id"
rm -rf "$top"/etc/systemd/system/*.wants "$top"/etc/systemd/system/iggy* "$top"/var/log/journal
echo mounted
exec sleep infinity
"""
"""Holds the files; what this machine would start is taken out."""
ENTER = """
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done
shift
exec "$@"
"""
"""Runs a command in these control groups."""


class CommandError(Exception):
    """A command inside ended with an error; says what it printed."""


def missing() -> list[str]:
    """Say what this machine lacks for it; nothing when it can be booted."""
    lacks = [f"{tool} (Debian: systemd-container dbus util-linux)" for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        lacks.append("root")
    if not POLKIT.exists():
        lacks.append("polkit (Debian: polkitd)")
    return lacks


class Booted:
    """One such system. All methods block.

    It is started from the main thread: the death signal is sent when the thread that started a process ends.

    Args:
        shown: Folders of this machine that are seen inside at the same paths, read-only; what lies on the file system
            of `/` is there in any case, but for what is in `/tmp` and `/run`.
    """

    def __init__(self, shown: Sequence[Path] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="iggy-booted-"))
        self.root_outside = self.folder / "root"
        """The path of its root in the mount namespace of `outside`."""
        self.console = self.folder / "console.log"
        self._holder: subprocess.Popen[str] | None = None
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._shown = shown
        self._groups: list[Path] = []
        self.boots = 0

    # --- begin and end

    def mount(self) -> None:
        """Make its files; nothing runs yet."""
        self._holder = subprocess.Popen(
            [*_dying("unshare", "--mount", "--propagation", "private"), "sh", "-c", MOUNT, "sh", str(self.folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "mounted\n":
            msg = "cannot mount an overlay of this machine's files"
            raise CommandError(msg)

    def boot(self) -> None:
        """Start systemd, and wait until it has booted."""
        if not self._groups:
            self._groups = make_groups(self.folder.name)
        with self.console.open("ab") as log:
            self._nspawn = subprocess.Popen(
                [
                    *_dying(*self._in_namespace("sh", "-c", ENTER, "sh")),
                    *(*map(str, self._groups), "--", "systemd-nspawn"),
                    *("--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe", "--timezone=off"),
                    *("--link-journal=no", "--resolv-conf=off", f"--machine={self.folder.name.replace('_', 'x')}"),
                    *(f"--bind-ro={folder}" for folder in self._shown),
                    f"--directory={self.root_outside}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": PATH, "SYSTEMD_NSPAWN_LOCK": "0"},
            )
        self._wait_until_booted()

    def shut_down(self) -> None:
        """End it in order, as `reboot` does; `boot` starts it again."""
        assert self._nspawn is not None
        self.run("systemctl", "reboot", "--no-block")
        self._nspawn.wait(BOOT_TIMEOUT)  # with --keep-unit it leaves the next boot to whoever started it
        self._nspawn = None

    def cut_power(self) -> None:
        """End it at once; `boot` starts it again."""
        self._kill()

    def end(self) -> None:
        """End all of it, and remove its files."""
        try:
            self._kill()
        finally:
            if self._holder is not None:
                self._holder.kill()
                self._holder.wait(END_TIMEOUT)
                assert self._holder.stdout is not None
                self._holder.stdout.close()
            remove_groups(self._groups)
            shutil.rmtree(self.folder)

    def _kill(self) -> None:
        if self._nspawn is None:
            return
        leader = self._find_leader()
        if leader is not None:
            os.kill(leader, signal.SIGKILL)
        try:
            self._nspawn.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._nspawn = None

    def _wait_until_booted(self) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT
        while time.monotonic() < deadline:
            assert self._nspawn is not None
            if self._nspawn.poll() is not None:
                break
            if self._find_leader() is not None:
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in SETTLED:
                    self.boots += 1
                    return
            time.sleep(0.05)
        msg = f"systemd did not boot: {self.console.read_text(errors='replace')[-2000:]}"
        raise CommandError(msg)

    # --- use

    @property
    def leader(self) -> int:
        """The pid of its PID 1."""
        leader = self._find_leader()
        assert leader is not None, "it does not run"
        return leader

    @property
    def root(self) -> Path:
        """Its files, as this process reaches them."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{self.root_outside}")

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file, and the folders to it."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        new.write_text(text, encoding="utf-8")
        new.chmod(mode)
        new.replace(file)

    def outside(self, *argv: str, environ: Mapping[str, str] | None = None) -> str:
        """Run a command of this machine that sees the system's files below `root_outside`."""
        return _run(self._in_namespace(*argv), environ={**os.environ, **(environ or {})}).stdout

    def run(
        self, *argv: str, user: str | None = None, check: bool = True, stdin: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command inside, as root or as one of its users.

        Raises:
            CommandError: It failed, and `check` was not turned off.
        """
        return _run(self.command(*argv, user=user), environ=ENVIRONMENT, check=check, stdin=stdin)

    def command(self, *argv: str, user: str | None = None) -> list[str]:
        """Return the command of this machine that runs one inside, and that is killed with whoever starts it.

        The one inside is ended with the system, at the latest.
        """
        inside = _dying("nsenter", "--target", str(self.leader), "--all", "--")
        if user is not None:
            inside += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--no-new-privs", "--"]
        return [*inside, *argv]

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Read properties of a unit."""
        output = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).stdout
        return dict(line.split("=", 1) for line in output.splitlines())

    def journal(self, unit: str, lines: int = 40) -> str:
        """Return the end of a unit's log."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--lines={lines}", f"--unit={unit}").stdout

    def _in_namespace(self, *argv: str) -> list[str]:
        assert self._holder is not None
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "--", *argv]

    def _find_leader(self) -> int | None:
        """Find the child of systemd-nspawn that is PID 1 inside: proc_pid_status(5), NSpid."""
        if self._nspawn is None or self._nspawn.poll() is not None:
            return None
        pid = self._nspawn.pid
        try:
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines())
                started = Path(f"/proc/{child}/comm").read_text().strip() == "systemd"
                if started and lines["NSpid"].split()[-1] == "1":
                    return int(child)
        except (FileNotFoundError, ProcessLookupError):
            pass
        return None


def _dying(*argv: str) -> list[str]:
    """Have a command end with the process that starts it."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


def _run(
    argv: Sequence[str], *, environ: Mapping[str, str], check: bool = True, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        argv, env=dict(environ), input=stdin, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT
    )
    if check and done.returncode != 0:
        msg = f"{' '.join(argv)} ended with {done.returncode}: {done.stdout}{done.stderr}"
        raise CommandError(msg)
    return done


def system_python() -> str | None:
    """Find an interpreter that a unit can use, as `make wheelhouse` does: with venv, and not below a home."""
    for candidate in ("/usr/bin/python3", getattr(sys, "_base_executable", sys.executable)):
        real = Path(candidate).resolve()
        if any(real.is_relative_to(home) for home in ("/root", "/home")) or not os.access(real, os.X_OK):
            continue
        asked = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([candidate, "-c", asked], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    return None
