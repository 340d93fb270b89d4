"""What the `iggy-connectors` double is configured by."""

from collections.abc import Mapping
from pathlib import Path

from tests.standins.configuration import Table, load

DEFAULTS: Table = {
    "http": {"enabled": True, "address": "127.0.0.1:8081", "api_key": ""},
    "iggy": {"address": "localhost:8090", "username": "iggy", "password": "iggy", "token": ""},
    "state": {"path": "local_state"},
    "connectors": {"config_type": "local", "config_dir": ""},
}
DEFAULT_PATH = "core/connectors/runtime/config.toml"


def path(environ: Mapping[str, str]) -> Path:
    """Name the configuration file."""
    return Path(environ.get("IGGY_CONNECTORS_CONFIG_PATH") or DEFAULT_PATH)


def read(environ: Mapping[str, str]) -> Table:
    """Load the configuration as iggy-connectors does; raise CannotLoadError for what it cannot load."""
    return load(DEFAULTS, path=path(environ), prefix="IGGY_CONNECTORS_", environ=environ)
