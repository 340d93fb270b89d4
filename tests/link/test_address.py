import ssl
from pathlib import Path

import pytest

from agent.errors import SettingsError
from agent.link.address import api_base, tls_context


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://supervisor.example.com", "https://supervisor.example.com/agent/v1/"),
        ("https://supervisor.example.com/", "https://supervisor.example.com/agent/v1/"),
        (" https://example.com:8443/fleet/ ", "https://example.com:8443/fleet/agent/v1/"),
        ("http://localhost:8080", "http://localhost:8080/agent/v1/"),
        ("http://127.8.8.8", "http://127.8.8.8/agent/v1/"),
        ("http://[::1]:80", "http://[::1]/agent/v1/"),
    ],
)
def test_the_base_is_below_the_url(url: str, base: str) -> None:
    assert str(api_base(url)) == base


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://supervisor.example.com", "plain HTTP"),
        ("http://10.0.0.1", "plain HTTP"),
        ("http://localhost.example.com", "plain HTTP"),
        ("http://[::2]", "plain HTTP"),
        ("ftp://supervisor.example.com", "https://"),
        ("supervisor.example.com", "https://"),
        ("", "https://"),
        ("https://", "host"),
        ("https://example.com:port", "ort"),
        (f"https://{'a' * 70}.example.com", "label"),
        ("https://example.com?x=1", "query"),
        ("https://example.com#x", "fragment"),
        ("https://user:hunter22@example.com", "user or a password"),
    ],
)
def test_an_unusable_url_is_refused_with_its_reason(url: str, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        api_base(url)
    assert why in str(caught.value)
    assert "supervisor.url" in caught.value.message
    assert "hunter22" not in str(caught.value)


def test_a_ca_file_that_cannot_be_used_says_which_and_why(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ca_file .*missing\.pem: No such file"):
        tls_context("http://127.0.0.1:1", tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("no certificate here")
    with pytest.raises(SettingsError, match="holds no certificate"):
        tls_context("http://127.0.0.1:1", tmp_path / "empty.pem")


CUT_OFF = "-----BEGIN CERTIFICATE-----\nMIIB\n"


@pytest.mark.parametrize(
    ("content", "exit_code"),
    [
        (None, 74),
        ("", 74),
        (CUT_OFF, 74),
        (Path("/proc/self/mem"), 74),  # EIO
        ("no certificate here", 78),
        (f"{CUT_OFF}-----END CERTIFICATE-----\n", 78),
        (Path("/"), 78),
    ],
)
def test_a_ca_file_that_may_be_whole_in_a_moment_does_not_keep_the_agent_down(
    tmp_path: Path, content: str | Path | None, exit_code: int
) -> None:
    file = tmp_path / "ca.pem"
    if isinstance(content, Path):
        file.symlink_to(content)
    elif content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=r"cannot use supervisor\.ca_file") as caught:
        tls_context("https://supervisor.example.com", file)
    assert caught.value.exit_code == exit_code


def test_plain_http_needs_no_certificates() -> None:
    assert tls_context("http://127.0.0.1:8700", None) is None
    context = tls_context("https://supervisor.example.com", None)
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
