import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Rejection
from agent.protocol import MAX_CONFIG_BYTES, Config, ConfigFile, ReasonCode, RuntimeName
from agent.runtimes import rules
from tests.runtimes.configs import config, connectors_config

IGGY, CONNECTORS = RuntimeName.IGGY, RuntimeName.CONNECTORS
VALID = {"IGGY_HTTP_ADDRESS": "127.0.0.1:3000", "IGGY_SYSTEM_PATH": "/var/lib/iggy", "IGGY_NOTE": 'ünïcode $x "q"'}
TOML = "[tcp]\naddress = '127.0.0.1:8090'\n"


@pytest.mark.parametrize(
    ("good", "runtime"),
    [
        (config(values=VALID, secret_keys=["IGGY_NOTE"], files={"config.toml": TOML, "certs/a.pem": "x"}), IGGY),
        (config(values={}), IGGY),
        (connectors_config(files={"config.toml": TOML, "connectors/.hidden-1.toml": ""}), CONNECTORS),
        (connectors_config(values={"IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR": "/etc/connectors"}), CONNECTORS),
    ],
)
def test_a_config_within_the_rules_passes(good: Config, runtime: RuntimeName) -> None:
    rules.check(good, runtime)


def test_a_wrong_checksum_has_its_own_code() -> None:
    with pytest.raises(Rejection, match=r"its content has sha256 [0-9a-f]{12}…, expected 000000000000…") as refused:
        rules.check(config(sha256="0" * 64), IGGY)
    assert refused.value.code is ReasonCode.CONFIG_CHECKSUM


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (config(kind="connectors"), "it is for 'connectors', not for iggy"),
        (config(values={"LD_PRELOAD": "x"}), "key 'LD_PRELOAD' is not allowed"),
        (config(values={"IGGY_lower": "x"}), "key 'IGGY_lower' is not allowed"),
        (config(values={"IGGY_A\n": "x"}), "is not allowed"),
        (config(values={"IGGY_": "x"}), "key 'IGGY_' is not allowed"),
        (config(values={"IGGY_CONNECTORS_HTTP_ADDRESS": "x"}), "is not allowed for iggy"),
        (config(values={"IGGY_CONFIG_PATH": "/etc/passwd"}), "the agent says where the config is"),
        (config(values={"IGGY_ENV_PATH": "/etc/passwd"}), "the agent says where the config is"),
        (config(values={"IGGY_A": "x\nLD_PRELOAD=y"}), "the value of IGGY_A holds a newline"),
        (config(values={"IGGY_A": "x\0"}), "the value of IGGY_A holds"),
        (config(values={"IGGY_A": "x\x85"}), "the value of IGGY_A holds"),
        (config(values={"IGGY_A": "x" * (rules.MAX_VALUE_BYTES + 1)}), "the value of IGGY_A has over"),
        (config(values={f"IGGY_{n}": "" for n in range(rules.MAX_VALUES + 1)}), "it has 1025 values"),
        (config(secret_keys=["IGGY_TYPO"]), "secret_keys names 'IGGY_TYPO'"),
        (config(files={"config.toml": "[tcp]\naddress = \n"}), r"config.toml is not TOML: .*line 2"),
        (config(files={"config.toml": "a = " + "[" * 5000}), "config.toml is not TOML"),
        (config(files={"config.toml": "a = " + "9" * 5000}), "config.toml is not TOML: a number in it has too many"),
        (config(files={"config.toml": "a." * 250_000 + "a = 1"}), "config.toml is not TOML: a name has more than"),
        (config(files={f"f{n}": "" for n in range(rules.MAX_FILES + 1)}), "it has 257 files"),
        (config(files={"a": "", "a/b": ""}), "path a is a file and a folder"),
        (config(files={"big": "x" * MAX_CONFIG_BYTES}), "at most 524288 are allowed"),
        *(
            (config(files={path: ""}), "is not allowed")
            for path in (
                "/etc/x",
                "../x",
                "a/../b",
                "a//b",
                "",
                "a/",
                ".",
                "a/./b",
                "a b",
                "a\nb",
                "ä",
                "x" * 256,
                "...",
            )
        ),
    ],
)
def test_a_broken_rule_is_named(bad: Config, text: str) -> None:
    with pytest.raises(Rejection, match=text) as refused:
        rules.check(bad, IGGY)
    assert refused.value.code is ReasonCode.CONFIG_INVALID
    assert str(refused.value).startswith("config_invalid: cannot use config 42: ")


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (connectors_config(values={"IGGY_HTTP_ADDRESS": "x"}), "is not allowed for connectors"),
        (connectors_config(values={"IGGY_CONNECTORS_CONFIG_PATH": "x"}), "the agent says where"),
        (
            connectors_config(
                values={"IGGY_CONNECTORS_CONNECTORS_CONFIG_DIR": "/etc"}, files={"connectors/a.toml": ""}
            ),
            "is set by the agent",
        ),
    ],
)
def test_connectors_have_keys_of_their_own(bad: Config, text: str) -> None:
    with pytest.raises(Rejection, match=text):
        rules.check(bad, CONNECTORS)


def test_the_same_path_twice_is_refused() -> None:
    twice = [ConfigFile(path="a", content="1"), ConfigFile(path="a", content="2")]
    draft = config().model_copy(update={"files": twice})
    with pytest.raises(Rejection, match="path a comes twice"):
        rules.check(draft.model_copy(update={"sha256": draft.compute_sha256()}), IGGY)


def test_text_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(Rejection, match="lone surrogate"):
        rules.check(config().model_copy(update={"values": {"IGGY_A": "\ud800"}}), IGGY)


def test_no_message_shows_a_value() -> None:
    with pytest.raises(Rejection) as refused:
        rules.check(config(values={"IGGY_ROOT_PASSWORD": "hunter2\n"}, secret_keys=["IGGY_ROOT_PASSWORD"]), IGGY)
    assert "hunter2" not in str(refused.value)


@given(st.text(max_size=40))
def test_a_path_that_passes_stays_inside(path: str) -> None:
    try:
        rules.check(config(files={path: ""}), IGGY)
    except Rejection:
        return
    parts = path.split("/")
    assert not path.startswith("/")
    assert not {"", ".", ".."} & set(parts)
