"""What all short parts of the campaign have in common."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def agents_at_their_own_speed() -> Iterator[None]:
    """Measure no coverage of the agents that are put to the test here: it makes each start twice as long."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("COVERAGE")]:
            patch.delenv(name)
        yield
