"""What iggy-server refuses to start with, how it says so, and the exit codes that are not what one would expect."""

import socket

import pytest

from tests.conformance.programs import Programs, Server, is_open, taken, until

CASES = {
    "not TOML": "[http\nenabled = true",
    "a wrong type": '[http]\nenabled = "perhaps"',
    "a size that is none": '[system.memory_pool]\nsize = "lots"',
}


def error(programs: Programs, word: str) -> str:
    return f"Error: {'ConfigurationError' if programs.legacy else 'Config'}({word})\n"


@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
def test_a_file_that_it_cannot_load(server: Server, text: str) -> None:
    config = server.folder / "config.toml"
    config.write_text(text)
    run = server.start(IGGY_CONFIG_PATH=str(config), without=("IGGY_SYSTEM_MEMORY_POOL_SIZE",))
    assert run.wait() == 1
    assert run.errors == error(server.programs, "CannotLoadConfiguration")


@pytest.mark.parametrize(
    ("name", "value"),
    [("IGGY_HTTP_ENABLED", "perhaps"), ("IGGY_SYSTEM_PATH", "12345"), ("IGGY_SYSTEM_SEGMENT_SIZE", "big")],
    ids=["a word for a bool", "a number for a string", "a word for a size"],
)
def test_a_variable_of_the_wrong_type(server: Server, name: str, value: str) -> None:
    run = server.start(changes={name: value})
    assert run.wait() == 1
    assert run.errors == error(server.programs, "CannotLoadConfiguration")


REFUSED = {
    "IGGY_SYSTEM_MEMORY_POOL_SIZE": (
        "1 MiB",
        "Configured system.memory_pool.size 1048576 B (1 MiB) is less than minimum 536870912 B, (512 MiB)",
    ),
    "IGGY_SYSTEM_MEMORY_POOL_BUCKET_CAPACITY": (
        "64",
        "Configured system.memory_pool.buffers 64 is less than minimum 128",
    ),
    "IGGY_SYSTEM_SEGMENT_SIZE": (
        "2 GiB",
        "Configured system.segment.size 2147483648 B is greater than maximum 1073741824 B",
    ),
    "IGGY_SYSTEM_SHARDING_CPU_ALLOCATION": ("0", "Invalid sharding configuration: cpu_allocation count cannot be 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_out_of_range_is_named_on_stderr(server: Server, name: str) -> None:
    value, line = REFUSED[name]
    run = server.start(changes={name: value})
    assert run.wait() == 1
    assert run.errors == f"{line}\n{error(server.programs, 'InvalidConfigurationValue')}"
    assert not is_open(server.http)


@pytest.mark.parametrize("transport", ["http", "tcp"])
def test_a_taken_port_ends_it_by_itself(server: Server, transport: str) -> None:
    """0.8 mostly calls that a success: it exits with 0, or with 1 when its second shard was not up yet."""
    with taken(server.ports[transport]):
        run = server.start()
        code = run.wait()
    if server.programs.legacy:
        assert code in {0, 1}
    else:
        assert code == 1
        assert f'CannotBindToSocket("127.0.0.1:{server.ports[transport]}")' in run.errors


def test_a_taken_http_port_is_named_on_stderr_by_0_8(server: Server) -> None:
    if not server.programs.legacy:
        pytest.skip("0.9 names it in its error")
    with taken(server.http):
        run = server.start()
        run.wait()
    assert f"Failed to bind to HTTP address 127.0.0.1:{server.http}" in run.errors


def test_a_taken_quic_port_leaves_0_8_up_without_http(server: Server) -> None:
    if not server.programs.legacy:
        pytest.skip("0.9 ends at once")
    with taken(server.ports["quic"], socket.SOCK_DGRAM):
        run = server.start()
        refusal = f"Cannot bind to socket with addr: 127.0.0.1:{server.ports['quic']}"
        until(lambda: refusal in run.log, "the refusal in the log")
        until(lambda: not is_open(server.http), "HTTP closed")
        assert not server.answers()


def test_an_http_address_that_is_none(server: Server) -> None:
    run = server.start(IGGY_HTTP_ADDRESS="nonsense")
    assert run.wait() in ({0, 1} if server.programs.legacy else {1})
    if server.programs.legacy:
        assert "Failed to bind to HTTP address nonsense" in run.errors


def test_half_a_pair_of_root_credentials_on_new_data(server: Server) -> None:
    run = server.start(without=("IGGY_ROOT_PASSWORD",))
    if server.programs.legacy:
        assert run.wait() == 101
        assert "both username and password must be set." in run.errors
    else:
        assert run.wait() == 1
        names = 'provided_env: "IGGY_ROOT_USERNAME", missing_env: "IGGY_ROOT_PASSWORD"'
        assert run.errors == f"Error: RootCredentialsIncomplete {{ {names} }}\n"


def test_an_empty_root_password_on_new_data(server: Server) -> None:
    if not server.programs.legacy:
        pytest.skip("0.9 was not measured with it")
    run = server.start(IGGY_ROOT_PASSWORD="")
    assert run.wait() == 101
    assert "Root user credentials are not set." in run.errors


def test_half_a_pair_of_root_credentials_when_root_exists(server: Server) -> None:
    server.started().stop()
    run = server.start(without=("IGGY_ROOT_PASSWORD",))
    if server.programs.legacy:
        server.ready(run)
    else:
        assert run.wait() == 1
