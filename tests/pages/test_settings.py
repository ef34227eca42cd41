"""The tables of settings and arguments say what is so, and every setting that a page names exists."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from operator import getitem
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from attacks.model_inversion.registry import INVERSIONS
from attacks.observation import Circumstances
from attacks.registry import ATTACKS
from experiments.settings import ExperimentSettings
from fl_sim.task import TASKS
from tests.pages.pages import HELP, REPOSITORY, Item, Page, help_page, pages

PAGES = pages() | {HELP: help_page()}
OPEN = {"unset", "all", "drawn by the system", "the only one", "see below"}
"""Words for a default of None; the name of another setting, in backticks, is one too."""

TABLES = "|".join(
    name for name, field in ExperimentSettings.model_fields.items() if hasattr(field.annotation, "model_fields")
)
NAMED = re.compile(rf"((?:{TABLES})(?:\.[\w<>*-]+)+|task|seed|threat)(?: ?= ?(.+))?")
FILE_NAMES = (".json", ".parquet", ".py", ".safetensors", ".toml")
PLACEHOLDERS = ("key", "<argument>")
FREE = ("strategy.args", "defence.args", "attack.args", "inversion.args", "model.factory_args", "model.classifier_args")
"""Tables whose keys depend on a name."""


def leaves(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The settings of a tree of tables, by their dotted names."""
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


SETTINGS = dict(leaves(ExperimentSettings))


def rows(page: str, first: str) -> dict[str, list[tuple[str, str]]]:
    """Key and default of the tables on a page whose first heading is ``first``, by the title above them."""
    found: dict[str, list[tuple[str, str]]] = {}
    title, inside = "", False
    for line in PAGES[page].text.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        inside = bool(cells) and (inside or cells[:2] == [first, "default"])
        if inside and cells[0].startswith("`"):
            found.setdefault(title, []).append((cells[0].strip("`"), cells[1]))
    return found


def means(cell: str, default: Any) -> bool:
    """Whether a cell of the column "default" says what the default is."""
    if default is None:
        return cell in OPEN or cell.startswith("`")
    plain = list(default) if isinstance(default, tuple) else default
    try:
        return bool(tomllib.loads(f"value = {cell}")["value"] == plain)
    except tomllib.TOMLDecodeError:
        return isinstance(plain, list) and cell.split(", ") == plain


def test_every_setting_is_in_the_table_with_its_default() -> None:
    table = dict(row for rows_of_one in rows("docs/settings.md", "key").values() for row in rows_of_one)
    for name in ("attack.args", "inversion.args"):
        table[name] = table.pop(f"{name}.<name>")
    assert table.keys() == SETTINGS.keys()
    wrong = {
        key: cell
        for key, cell in table.items()
        if not means(cell, SETTINGS[key].get_default(call_default_factory=True))
    }
    assert not wrong


def test_every_argument_of_an_attack_is_in_its_table_with_its_default() -> None:
    common = {"derivative"}  # described once, for all
    for name in ATTACKS.names():
        fields = dict(leaves(ATTACKS.find(name)))
        inherited = ATTACKS.find("gidm").model_fields if name == "gidm-plus" else {}
        table = dict(rows(f"docs/attacks/{name}.md", "argument")[name])
        assert table.keys() == fields.keys() - inherited.keys() - common, name
        for key, cell in table.items():
            default = fields[key].get_default()
            assert means(cell, default) or (cell == "six pairs" and len(default) == 6), f"{name}.{key}: {default}"


def test_every_argument_of_a_model_inversion_is_in_its_table_with_its_default() -> None:
    tables = rows("docs/model-inversion.md", "argument")
    for name in INVERSIONS.names():
        table, values = dict(tables[name]), INVERSIONS.create(name).model_dump()
        assert table.keys() == dict(leaves(INVERSIONS.find(name))).keys(), name
        for key, cell in table.items():
            default = reduce(getitem, key.split("."), values)
            assert cell == "see below" or means(cell, default), f"{name}.{key}: {default}"


def test_the_published_column_is_the_published_recipe() -> None:
    values = INVERSIONS.create("diff-mi", {"recipe": "published"}).model_dump()
    table = PAGES["docs/model-inversion.md"].text.partition("### diff-mi")[2].partition("###")[0]
    lines = re.findall(r"^\| `([\w.]+)` \| [^|]* \| ([^|]*) \|", table, re.M)
    assert len(lines) == len(dict(leaves(INVERSIONS.find("diff-mi"))))
    for key, cell in lines:
        assert cell == "see below" or means(cell, reduce(getitem, key.split("."), values)), key


def test_the_capture_formats_defaults_are_those_that_are_read() -> None:
    table = dict(rows("docs/capture-format.md", "key")["Metadata"])
    of_tasks = {name: field for task in TASKS.values() for name, field in task.model_fields.items()}
    fields = of_tasks | Circumstances.model_fields | {"task": TASKS["diffusion"].model_fields["task"]}
    assert table.keys() - {"format"} == fields.keys() - {"format"}
    for key, field in fields.items():
        if key in table:
            cell = table[key]
            assert cell == "required" if field.is_required() else cell == "null" or means(cell, field.get_default()), (
                key
            )


def test_flwr_runs_keys_are_those_of_the_project() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    config = project["tool"]["flwr"]["app"]["config"]
    (table,) = rows("docs/flower.md", "key").values()
    assert {key: tomllib.loads(f"value = {cell}")["value"] for key, cell in table} == config


def named_settings(page: Page) -> Iterator[tuple[int, str, str | None]]:
    """Line, key and value of what looks like a setting: a code span of its own, or given with --set or overrides=."""
    for line, span in page.spans:
        found = NAMED.fullmatch(span)
        if found and not found[1].endswith(FILE_NAMES):
            yield line, found[1], found[2]
        if span.startswith("--set "):
            yield from ((line, *pair) for pair in given_settings(span))
    for item in page.of_kind("command"):
        if "fl-sim run " in item.text or "flwr run " in item.text:
            yield from ((item.line, *pair) for pair in given_settings(item.text))


def given_settings(text: str) -> Iterator[tuple[str, str]]:
    """The keys and values behind --set, and inside overrides="…"."""
    words = shlex.split(text, comments=True)
    pairs = [word for before, word in pairwise(words) if before == "--set"]
    pairs += [pair for words_inside in re.findall(r'overrides="(.*?)"', text) for pair in shlex.split(words_inside)]
    yield from ((key, value) for key, _, value in (pair.partition("=") for pair in pairs) if key not in PLACEHOLDERS)


ALL_NAMED = [
    pytest.param(key, value, id=f"{name}:{line} {key}")
    for name, page in PAGES.items()
    for line, key, value in dict.fromkeys(named_settings(page))
]


@pytest.mark.parametrize(("key", "value"), ALL_NAMED)
def test_a_setting_that_is_named_exists_and_takes_the_value(key: str, value: str | None) -> None:
    free = [name for name in FREE if key.startswith(f"{name}.")]
    tables = {name.rpartition(".")[0] for name in SETTINGS}
    assert free or key in SETTINGS or key in tables or key.endswith(".*"), f"{key}: there is no such setting"
    if value is None or free or "…" in value or value.startswith(("<", "package.module")):
        return
    field = SETTINGS[key]
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    TypeAdapter(Annotated[field.annotation, field]).validate_python(parsed)


def test_something_is_found() -> None:
    """The patterns above still find what is there."""
    assert len(ALL_NAMED) > 60
    page = Page(
        "x", "", [Item("x", 1, "command", "fl-sim run demo --set no.such=1")], [(2, "no.such = 1"), (3, "data.nam")]
    )
    assert [key for _, key, _ in named_settings(page)] == ["data.nam", "no.such"]
