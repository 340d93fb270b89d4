import subprocess
import sys
from pathlib import Path

import pytest

from agent.protocol import DriverKind, RuntimeName
from agent.redaction import Redactor
from agent.runtimes.docker import DockerDriver
from agent.settings import RuntimeSettings
from agent.wiring import Shared, make_runtime

IMPORTED = """
import sys
from pathlib import Path
import agent.daemon
from agent.redaction import Redactor
from agent.settings import RuntimeSettings
from agent.wiring import Shared, make_runtime
settings = RuntimeSettings.model_validate({settings})
make_runtime("iggy", settings, Path("/nowhere"), Redactor(), Shared())
print(" ".join(sorted({{"docker", "requests"}} & set(sys.modules))))
"""


def test_a_container_is_driven_through_the_engine_that_docker_host_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://proxy:2375")
    settings = RuntimeSettings(driver=DriverKind.DOCKER, container="iggy")
    runtime = make_runtime(RuntimeName.IGGY, settings, tmp_path, Redactor(), Shared())
    assert isinstance(runtime.driver, DockerDriver)
    assert runtime.driver._engine.address == "tcp://proxy:2375"


@pytest.mark.parametrize(
    ("settings", "loaded"),
    [
        ({"driver": "process", "command": ["true"]}, ""),
        ({"driver": "systemd", "unit": "iggy.service"}, ""),
        ({"driver": "docker", "container": "iggy"}, "docker requests"),
    ],
)
def test_the_docker_package_is_loaded_where_it_is_used_only(settings: dict[str, object], loaded: str) -> None:
    program = IMPORTED.format(settings=settings)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == loaded
