"""One Docker Engine for all tests here, with images of the agent, made by its Dockerfile, and of the stand-ins."""

from collections.abc import Iterator

import pytest

from tests.runtimes.engine_rig import RealEngine, running_engine
from tests.sidecar import images
from tests.system.node import wheelhouse_is_there


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All in one process when there are several: the images take half a minute to make."""
    for item in items:
        if item.path.parent.name == "sidecar":
            item.add_marker(pytest.mark.xdist_group("sidecar"))
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="package")
def engine() -> Iterator[RealEngine]:
    """An Engine with all the images; no network but those that a test makes."""
    if not wheelhouse_is_there():
        images.give_up("the wheels (make wheelhouse)")
    with running_engine() as engine:
        images.make_base(engine.api)
        images.build_agent(engine.api)
        images.make_standins(engine.api)
        yield engine
