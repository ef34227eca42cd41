"""The collector and the reader, on a made-up page: what somebody adds is found, and what is not so is told."""

from pathlib import Path

import pytest

from tests.pages.pages import Item, read_page
from tests.pages.reading import NoRuleError, Outcome, Reader, complaint
from tests.pages.rules import BLOCKS, PROGRAMS

TEXT = """# A page

Type `fl-sim list`, or `X=1 fl-sim run
demo`; `fl-sim` alone and `data.name` are no commands. [Here](#a-page), [there](gone.md).

```console
$ fl-sim run demo \\
>   --out here    # a comment
round 1/3: loss 0.5
$ fl-sim report here
```

```text
report: here/report.html
```

## A file: `mine.py`

```python
print(1)
```

```bash
# a comment alone
export A=1
```

```yaml
a: 1
```
"""


def test_everything_is_collected_with_its_line() -> None:
    page = read_page("page.md", TEXT)
    assert [(item.line, item.kind, item.text) for item in page.items] == [
        (3, "command", "fl-sim list"),
        (3, "command", "X=1 fl-sim run demo"),
        (7, "command", "fl-sim run demo --out here    # a comment"),
        (10, "command", "fl-sim report here"),
        (14, "output", "report: here/report.html\n"),
        (20, "python", "print(1)\n"),
        (25, "command", "export A=1"),
        (29, "yaml", "a: 1\n"),
    ]
    assert page.items[2].shown == ("round 1/3: loss 0.5",)
    assert page.files() == {"mine.py": "print(1)\n"}
    assert page.links == [(3, "#a-page"), (3, "gone.md")]
    assert page.anchors == {"a-page", "a-file-minepy"}


def command(text: str, *shown: str, block: int = 1) -> Item:
    return Item("page.md", 1, "command", text, shown, block)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(read_page("page.md", TEXT), tmp_path / "folder", PROGRAMS, BLOCKS)


def test_a_program_or_a_language_without_a_rule_is_told(reader: Reader) -> None:
    reader.page.items = [command("docker run fl-sim"), Item("page.md", 2, "yaml", "a: 1")]
    for item, name in zip(reader.page.items, ("docker", "yaml"), strict=True):
        with pytest.raises(NoRuleError, match=f"no rule for .*{name}"):
            reader.outcome(item)


def test_a_line_finds_what_those_above_it_have_made_and_each_is_run_once(reader: Reader) -> None:
    ran: list[list[str]] = []

    def note(_: Reader, words: list[str], environment: dict[str, str]) -> Outcome:
        ran.append([*words, *environment])
        return Outcome()

    reader.rules = PROGRAMS | {"fl-sim": note}
    for item in reader.page.of_kind("command"):
        reader.outcome(item)
    assert ran == [
        ["fl-sim", "list", "--help"],
        ["fl-sim", "run", "demo", "X"],
        ["fl-sim", "run", "demo", "--out", "here"],
        ["fl-sim", "report", "here"],
    ]


def test_what_a_page_names_is_made_first_and_where_it_writes_is_not(reader: Reader) -> None:
    reader.rules = {"fl-sim": lambda *_: Outcome()}
    reader.page.items = [command("fl-sim run demo --set data.path=/photos --out sum.safetensors")]
    reader.outcome(reader.page.items[0])
    assert (reader.folder / "photos" / "hospital_a").is_dir()
    assert not (reader.folder / "sum.safetensors").exists()
    assert reader.here("data.path=/photos") == f"data.path={reader.folder}/photos"
    assert reader.here("/my/photos") == "/my/photos"


@pytest.mark.parametrize(
    ("shown", "outcome", "wrong"),
    [
        (["loss 0.5, 4 clients", "…"], Outcome(0, "begun\nloss 0.123, 16  clients\n"), None),
        (["loss 0.5, 4 peers"], Outcome(0, "loss 0.5, 4 clients\n"), "no line of it"),
        ([], Outcome(1, "", "Traceback"), "exit code 1"),
        (["fl-sim: x = 3: at", "most 2"], Outcome(2, "", "fl-sim: x = 3: at most 2\n"), None),
        (["fl-sim: x = 3: at most 2"], Outcome(2, "", "fl-sim: x = 4: at most 2\n"), "this error"),
        (["fl-sim: x = 3: at most 2"], Outcome(1, "", "fl-sim: x = 3: at most 2\n"), "exit code 2"),
    ],
)
def test_what_is_shown_is_compared(shown: list[str], outcome: Outcome, wrong: str | None) -> None:
    found = complaint(command("fl-sim run demo", *shown), outcome)
    assert found is None if wrong is None else wrong in (found or "")
