"""How to make a container again from what the Engine says of it: nothing lost, nothing changed but what is wanted.

The Engine's answer of an inspection is nearly what it takes to make a container, and the exceptions are here. Names
and meanings are those of the Engine API 1.41, whose answers Docker 20.10 gave; what a newer one adds goes along, since
all is taken over but for what is known not to fit.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.runtimes.containers import (
    CONFIG_LABEL,
    OUR_LABELS,
    POLICY_LABEL,
    REPLACES_LABEL,
    VARIABLES_LABEL,
    Container,
)

_OWN_NETWORK = ("default", "bridge", "host", "none")
"""Network modes that are no network of a user's; `container:…` is none either."""
_LEGACY = frozenset({"ContainerIDFile", "KernelMemory", "KernelMemoryTCP"})
"""Parts of HostConfig that newer Engines refuse, and that are of no use any more."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a container's environment is to hold of the agent's.

    Args:
        sha256: Checksum of the release; None: none of it, and what was there before it.
        environment: Its variables.
    """

    sha256: str | None
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What it takes to make a container.

    Args:
        body: Of POST /containers/create.
        networks: What to connect it to afterwards: API versions before 1.44 take one network only.
    """

    body: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Any]]


def make_recipe(source: Container, target: Target, *, image: str, replaces: str, policy: Mapping[str, Any]) -> Recipe:
    """Write down how to make a container like another one, with other variables of the agent's.

    Args:
        source: The container that it is to be like.
        target: The variables.
        image: Name or id.
        replaces: Id of the container that is kept until the new one is ready.
        policy: The restart policy that both have when nothing is under way.
    """
    environment, before = change_environment(source, target)
    labels = {key: value for key, value in source.labels.items() if key not in OUR_LABELS}
    labels[REPLACES_LABEL] = replaces
    labels[POLICY_LABEL] = json.dumps(policy, sort_keys=True)
    if target.sha256 is not None:
        labels[CONFIG_LABEL] = target.sha256
        labels[VARIABLES_LABEL] = json.dumps(before, sort_keys=True)
    networks = dict(_networks(source))
    mode = _mode(source)
    first = {mode: networks.pop(mode)} if mode in networks else {}
    body = {
        **_config(source),
        "Image": image,
        "Env": environment,
        "Labels": labels,
        "HostConfig": _host_config(source, policy),
        "NetworkingConfig": {"EndpointsConfig": first},
    }
    return Recipe(body, networks)


def change_environment(source: Container, target: Target) -> tuple[list[str], dict[str, str | None]]:
    """Take the agent's old variables out and its new ones in; returns the environment, and what the new ones hide."""
    given: list[str] = (source.data.get("Config") or {}).get("Env") or []
    found = dict(_split(line) for line in given)
    for key, original in source.variables.items():
        if original is None:
            found.pop(key, None)
        else:
            found[key] = original
    before = {key: found.get(key) for key in target.environment}
    found |= target.environment
    return [key if value is None else f"{key}={value}" for key, value in found.items()], before


def _split(line: str) -> tuple[str, str | None]:
    key, equals, value = line.partition("=")
    return key, value if equals else None


# --- the parts -------------------------------------------------------------------------------------------------------


def _config(source: Container) -> dict[str, Any]:
    config = dict(source.data.get("Config") or {})
    of_another = _mode(source).startswith("container:")
    if config.get("Hostname") == source.short_id:
        del config["Hostname"]  # the Engine's own choice: a new container gets a new one
    if of_another or _uts_mode(source):
        config.pop("Hostname", None)
        config.pop("Domainname", None)
    if of_another:
        config.pop("ExposedPorts", None)
    if not config.get("MacAddress"):
        config.pop("MacAddress", None)
    return config


def _uts_mode(source: Container) -> str:
    return str((source.data.get("HostConfig") or {}).get("UTSMode") or "")


def _mode(source: Container) -> str:
    return str((source.data.get("HostConfig") or {}).get("NetworkMode") or "default")


def _host_config(source: Container, policy: Mapping[str, Any]) -> dict[str, Any]:
    host = {key: value for key, value in (source.data.get("HostConfig") or {}).items() if key not in _LEGACY}
    host["RestartPolicy"] = dict(policy)
    host["VolumesFrom"] = None  # its volumes are named below; the container that they are from may be gone
    mounts = list(source.data.get("Mounts") or [])
    host["Mounts"] = [_with_volume(mount, mounts) for mount in host.get("Mounts") or []]
    named = {_bind_target(bind) for bind in host.get("Binds") or []}
    named |= {str(mount.get("Target")) for mount in host["Mounts"]}
    named |= set(host.get("Tmpfs") or {})
    host["Binds"] = [*(host.get("Binds") or []), *_binds(mounts, named)]
    host["Ulimits"] = [_as_docker_names_it(limit) for limit in host.get("Ulimits") or []] or None
    return host


def _as_docker_names_it(limit: Mapping[str, Any]) -> dict[str, Any]:
    """Name a limit as it is asked for: Podman (seen with 4.3) tells of RLIMIT_NOFILE what it only takes as nofile."""
    return {**limit, "Name": str(limit.get("Name")).removeprefix("RLIMIT_").lower()}


def _with_volume(wanted: Mapping[str, Any], mounts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Name the volume that the Engine made for a mount without a source."""
    if wanted.get("Type") == "volume" and not wanted.get("Source"):
        for mount in mounts:
            if mount.get("Destination") == wanted.get("Target") and mount.get("Name"):
                return {**wanted, "Source": mount["Name"]}
    return dict(wanted)


def _bind_target(bind: str) -> str:
    parts = bind.split(":")
    return parts[1] if len(parts) > 1 else parts[0]


def _binds(mounts: Iterable[Mapping[str, Any]], named: set[str]) -> Iterator[str]:
    """Name what the container has mounted without saying so: anonymous volumes, volumes of other containers."""
    for mount in mounts:
        source = mount.get("Name") if mount.get("Type") == "volume" else mount.get("Source")
        destination = mount.get("Destination")
        if source and destination not in named and mount.get("Type") in {"volume", "bind"}:
            options = [] if mount.get("RW", True) else ["ro"]
            if mount.get("Type") == "bind" and mount.get("Propagation"):
                options.append(str(mount["Propagation"]))
            yield ":".join([str(source), str(destination), *([",".join(options)] if options else [])])


def _networks(source: Container) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name the networks of a user's that it is connected to, and what it is there."""
    mode = _mode(source)
    if mode.startswith("container:"):
        return
    for name, found in ((source.data.get("NetworkSettings") or {}).get("Networks") or {}).items():
        key = mode if mode in {name, found.get("NetworkID")} else name
        if key in _OWN_NETWORK and key != "bridge":
            continue
        endpoint = {
            "IPAMConfig": found.get("IPAMConfig"),
            "Links": found.get("Links"),
            "Aliases": [alias for alias in found.get("Aliases") or [] if alias != source.short_id],
            "DriverOpts": found.get("DriverOpts"),
            "GwPriority": found.get("GwPriority"),
        }
        wanted = {part: value for part, value in endpoint.items() if value}
        if key == "bridge" and mode in {"default", "bridge"} and not wanted:
            continue
        yield key, wanted
