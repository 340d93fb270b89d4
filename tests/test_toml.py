import re
import time
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.toml import MAX_DEPTH, MAX_DOTS, TomlError, read_toml

LONG = ".".join("a" * (MAX_DOTS + 1))
SOON = 15.0
"""Seconds; what is refused soon takes the standard library an hour."""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# a comment " + "." * 100,
        '[http.jwt]\naddress = "127.0.0.1:8090"\nnumbers = [1.5, 2.5]\n',
        f"{LONG} = 1",
        f"[{LONG}]\nb.c = 2026-01-01",
        f'a = "{"." * 500}"\nb = \'{"." * 500}\'\n"{"x." * 500}" = 1',
        'a = """\n' + "one.two." * 100 + '\n"""',
        "a = '''\n" + "one.two." * 100 + "\n'''\n",
        "versions = [" + "1.0, " * 100 + "]",
        'a = "\\"' + "." * 100 + '"',
    ],
)
def test_what_people_write_is_read_as_the_standard_library_does(text: str) -> None:
    assert read_toml(text) == tomllib.loads(text)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a = \n", "line 1"),
        ("a = 1\na = 2", "Cannot overwrite a value"),
        ("a = " + "9" * 5_000, "a number in it has too many digits"),
        ("a = " + "[" * 100_000, "it is nested too deeply"),
        (
            "a = " + "{a = " * (MAX_DEPTH // 2) + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}" * (MAX_DEPTH // 2),
            "nested too deeply",
        ),
        (f"\n{LONG} . a = 1", "a name has more than 32 dots (at line 2)"),
        (".".join(['"a b"'] * 100) + " = 1", "more than 32 dots"),
        (f"[[{LONG}.a]]", "more than 32 dots"),
        (f"a = {{{LONG}.a = 1}}", "more than 32 dots"),
    ],
    ids=["syntax", "twice", "digits", "lists", "tables", "name", "quoted", "header", "inline"],
)
def test_what_is_wrong_is_one_kind_of_error(text: str, cause: str) -> None:
    with pytest.raises(TomlError, match=re.escape(cause)):
        read_toml(text)


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" * 250_000) + " = 1",
        "[" + ".".join("a" * 125_000) + "]\n" + "a=1\n" * 60_000,
        'a = "' + '\\"' * 250_000,
        '"' * 500_000,
        "'" * 500_000,
        "a" * 500_000,
        "a = '''" + "'" * 500_000,
        "." * 500_000,
        "\n" * 500_000 + "a..",
    ],
    ids=["name", "header", "escapes", "double", "single", "word", "several lines", "dots", "lines"],
)
def test_half_a_megabyte_of_nonsense_is_refused_soon(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(TomlError):
        read_toml(text)
    assert time.monotonic() - began < SOON


@given(st.text() | st.text(alphabet="ab.=\"'[]{}#\n\\, 1"))
def test_any_text_is_content_or_an_error(text: str) -> None:
    try:
        content = read_toml(text)
    except TomlError:
        return
    assert content == tomllib.loads(text)
