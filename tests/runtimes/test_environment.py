import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runtimes import environment

KEYS = st.from_regex(r"IGGY_[A-Z0-9_]{1,20}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=60)


@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_what_is_rendered_parses_to_the_same_values(values: dict[str, str]) -> None:
    assert environment.parse(environment.render(values)) == values


def test_values_are_quoted_as_systemd_reads_them() -> None:
    assert environment.render({"IGGY_B": 'a "b" \\ `c` $d #e', "IGGY_A": ""}) == (
        'IGGY_A=""\nIGGY_B="a \\"b\\" \\\\ \\`c\\` \\$d #e"\n'
    )


@pytest.mark.parametrize("line", ["IGGY_A=1", 'IGGY_A="a" b', 'IGGY_A="a\\n"', 'IGGY_A="$x"', "", 'A B="c"'])
def test_a_line_of_another_form_is_refused_by_number_without_its_content(line: str) -> None:
    with pytest.raises(ValueError, match=r'^line 2 is not KEY="value"$'):
        environment.parse(f'IGGY_OK="x"\n{line}\n')


def test_a_last_line_without_its_end_is_not_lost() -> None:
    assert environment.parse('A="1"\nB="2"') == {"A": "1", "B": "2"}


def test_only_what_is_listed_is_inherited() -> None:
    agents = {"PATH": "/bin", "LC_ALL": "C", "HOME": "/h", "AGENT_X": "1", "LISTEN_FDS": "1", "INVOCATION_ID": "2"}
    assert environment.inherited(agents) == {"PATH": "/bin", "LC_ALL": "C", "HOME": "/h"}
