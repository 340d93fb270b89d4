"""What the `iggy-server` double is configured by, and what it refuses: the keys of 0.8 that its behaviour follows."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.standins.configuration import CountOrWord, Duration, Size, Table, load, size_in_bytes

DEFAULTS: Table = {
    "message_saver": {"enabled": True, "enforce_fsync": True, "interval": Duration("30s")},
    "personal_access_token": {"max_tokens_per_user": 100},
    "heartbeat": {"enabled": False, "interval": Duration("5s")},
    "system": {
        "path": "local_data",
        "runtime": {"path": "runtime"},
        "logging": {"path": "logs", "level": "info", "file_enabled": True, "max_file_size": Size("500 MB")},
        "segment": {"size": Size("1 GiB")},
        "memory_pool": {"enabled": True, "size": Size("4 GiB"), "bucket_capacity": 8192},
        "sharding": {"cpu_allocation": CountOrWord("numa:auto")},
    },
    "tcp": {"enabled": True, "address": "127.0.0.1:8090", "ipv6": False},
    "quic": {"enabled": True, "address": "127.0.0.1:8080"},
    "websocket": {"enabled": True, "address": "127.0.0.1:8092"},
    "http": {
        "enabled": True,
        "address": "127.0.0.1:3000",
        "max_request_size": Size("2 MB"),
        "web_ui": False,
        "jwt": {
            "algorithm": "HS256",
            "access_token_expiry": Duration("1h"),
            "encoding_secret": "",
            "decoding_secret": "",
        },
        "metrics": {"enabled": True, "endpoint": "/metrics"},
        "tls": {"enabled": False, "cert_file": "", "key_file": ""},
    },
}
DEFAULT_PATH = "core/server/config.toml"

_MIB = 1024 * 1024
_MIN_POOL = 512 * _MIB
_MAX_SEGMENT = 1024 * _MIB


class InvalidValueError(Exception):
    """A value has the right type and is refused; the text is the line that Iggy prints."""


def public(config: Table) -> Table:
    """Copy a configuration without its secrets."""
    copy: Table = json.loads(json.dumps(config))
    for secret in ("encoding_secret", "decoding_secret"):
        del copy["http"]["jwt"][secret]
    return copy


def read(environ: Mapping[str, str]) -> Table:
    """Load the configuration as iggy-server does.

    Raises:
        CannotLoadError: it is not TOML, or a value has the wrong type.
        InvalidValueError: a value is out of its range.
    """
    config = load(DEFAULTS, path=Path(environ.get("IGGY_CONFIG_PATH") or DEFAULT_PATH), prefix="IGGY_", environ=environ)
    _validate(config["system"])
    return config


def _validate(system: dict[str, Any]) -> None:
    pool = system["memory_pool"]
    size = size_in_bytes(pool["size"])
    if pool["enabled"] and size < _MIN_POOL:
        msg = (
            f"Configured system.memory_pool.size {size} B ({size // _MIB} MiB) is less than minimum "
            f"{_MIN_POOL} B, ({_MIN_POOL // _MIB} MiB)"
        )
        raise InvalidValueError(msg)
    if pool["enabled"] and pool["bucket_capacity"] < 128:
        msg = f"Configured system.memory_pool.buffers {pool['bucket_capacity']} is less than minimum 128"
        raise InvalidValueError(msg)
    segment = size_in_bytes(system["segment"]["size"])
    if segment > _MAX_SEGMENT:
        msg = f"Configured system.segment.size {segment} B is greater than maximum {_MAX_SEGMENT} B"
        raise InvalidValueError(msg)
    cpus, available = system["sharding"]["cpu_allocation"], len(os.sched_getaffinity(0))
    if cpus == 0:
        msg = "Invalid sharding configuration: cpu_allocation count cannot be 0"
        raise InvalidValueError(msg)
    if isinstance(cpus, int) and cpus > available:
        msg = f"Invalid sharding configuration: cpu_allocation count {cpus} exceeds available CPU cores {available}"
        raise InvalidValueError(msg)
