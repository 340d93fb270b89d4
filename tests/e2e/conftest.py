"""Which programs the end-to-end tests run on: the stand-ins, and the real ones where they are asked for."""

import pytest

from tests.e2e.programs import Programs, ProgramsMissingError, real_programs, standin_programs


@pytest.fixture(params=[pytest.param("standin"), pytest.param("real", marks=pytest.mark.real)])
def programs(request: pytest.FixtureRequest) -> Programs:
    """The managed programs; real ones without `--run-real` are skipped, missing ones fail."""
    if request.param == "standin":
        return standin_programs()
    if not request.config.getoption("--run-real"):
        pytest.skip("runs real binaries: pytest --run-real -m real")
    try:
        return real_programs()
    except ProgramsMissingError as error:
        pytest.fail(str(error))
