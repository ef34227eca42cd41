"""What goes to a terminal or into a page has no control characters, and is of a bounded length."""

import pytest

from fl_sim.errors import UserError, plugged_in, printable, printable_page


def test_a_line_is_one_line_without_escape_sequences() -> None:
    assert printable("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"


def test_a_long_line_loses_its_middle() -> None:
    shown = printable("a" * 10**6 + "end")
    assert len(shown) < 4010
    assert shown.endswith("aaend")


def test_a_page_keeps_its_lines() -> None:
    assert printable_page("a\n\tb\x1b[2J\u202eé") == "a\n\tb\\x1b[2J\\u202eé"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RuntimeError("no\nluck"), "defence 'mine' failed: RuntimeError: no luck"),
        (UserError("strength = 3: too much"), "strength = 3: too much"),
    ],
)
def test_whatever_a_plug_in_raises_is_one_line(raised: Exception, said: str) -> None:
    with pytest.raises(UserError) as refused, plugged_in("defence 'mine'"):
        raise raised
    assert str(refused.value) == said
