"""The summaries of the benchmark as tables, for a terminal and for a page of the documentation."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as RichTable

from attacks.observation import ThreatModel
from experiments.bench.cases import Case
from experiments.bench.jobs import REACHED_DB
from experiments.bench.summary import Summary
from experiments.summary import RECOGNISABLE_DB

BASELINE = "gidm-published"
"""The contender that the others' speed is compared with."""


@dataclass(frozen=True)
class Table:
    """A table as text, whoever shows it; ``notes`` go below it, ``brief`` are the headings that matter most."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]
    brief: tuple[str, ...] = ()


def tables(summaries: Sequence[Summary]) -> list[Table]:
    """One table per suite, contenders of one case side by side, and the race to 40 dB of the suite ``speed``."""
    cases = list(dict.fromkeys(summary.case for summary in summaries))
    summaries = sorted(summaries, key=lambda summary: cases.index(summary.case))
    suites = dict.fromkeys(summary.case.suite for summary in summaries)
    shown = [_suite_table(suite, [s for s in summaries if s.case.suite == suite]) for suite in suites]
    return [*shown, *_races([s for s in summaries if s.case.suite == "speed" and s.case.threat is ThreatModel.KNOWN])]


_HEADINGS = (
    "case",
    "attack",
    "n",
    "dB",
    "quartiles",
    "least",
    f">= {RECOGNISABLE_DB:.0f} dB",
    "timesteps",
    "evals",
    "seconds",
    f"to {REACHED_DB:.0f} dB",
)

_BRIEF = ("case", "attack", "dB", f">= {RECOGNISABLE_DB:.0f} dB", "timesteps", f"to {REACHED_DB:.0f} dB")

_WIDE = 130
"""Terminals with fewer columns show a table in brief."""


def _suite_table(suite: str, summaries: Sequence[Summary]) -> Table:
    notes = [
        f"{where(summary.case)}, {summary.attack}: {count} of {summary.victims} failed: {reason}"
        for summary in summaries
        for reason, count in summary.failures.items()
    ]
    return Table(suite, _HEADINGS, [_suite_row(summary) for summary in summaries], notes, _BRIEF)


def _suite_row(summary: Summary) -> tuple[str, ...]:
    timesteps = summary.timesteps
    return (
        where(summary.case),
        summary.attack,
        str(summary.victims),
        f"{summary.median_psnr:.1f}",
        f"{summary.lower_quartile:.1f}-{summary.upper_quartile:.1f}",
        f"{summary.least_psnr:.1f}",
        f"{100 * summary.share_recognisable:.0f} %",
        "/".join(str(timesteps[name]) for name in ("exact", "unknown", "wrong")) if timesteps else "given",
        _number(summary.evaluations, ".0f"),
        _number(summary.seconds, ".1f"),
        _way(summary),
    )


def _races(summaries: Sequence[Summary]) -> list[Table]:
    """Everybody's way to 40 dB on the same gradients side by side, and who is first."""
    if not summaries:
        return []
    seconds = {summary.attack: summary.seconds_to_40_db for summary in summaries}
    arrived = {attack: value for attack, value in seconds.items() if value is not None}
    winner = min(arrived, key=lambda attack: arrived[attack]) if arrived else "nobody"
    notes = []
    if BASELINE in arrived:
        times = ", ".join(f"{attack} {arrived[BASELINE] / value:.1f}" for attack, value in arrived.items())
        notes = [f"times as fast as {BASELINE}: {times}"]
    headings = (*(summary.attack for summary in summaries), "winner")
    title = f"evaluations and seconds to {REACHED_DB:.0f} dB, known noise and timesteps, the same gradients"
    return [Table(title, headings, [(*map(_way, summaries), winner)], notes)]


def markdown(table: Table) -> str:
    """The table for a page of the documentation."""
    lines = [table.headings, ("---",) * len(table.headings), *table.rows]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"### {table.title}", "", *(f"| {' | '.join(line)} |" for line in lines), "", *notes, ""])


def rich_table(table: Table, width: int) -> RichTable:
    """The table for a terminal of that many columns; where they are few, the most important figures."""
    shown_headings = table.brief if table.brief and width < _WIDE else table.headings
    chosen = [index for index, heading in enumerate(table.headings) if heading in shown_headings]
    shown = RichTable(
        title=table.title,
        title_justify="left",
        caption="\n".join(table.notes) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        padding=(0, 1),
        collapse_padding=True,
        show_edge=False,
        pad_edge=False,
    )
    longest_word = max((len(word) for row in table.rows for word in row[0].split()), default=0)
    for index in chosen:
        shown.add_column(table.headings[index], no_wrap=index > 0, min_width=None if index else longest_word)
    for row in table.rows:
        shown.add_row(*(row[index] for index in chosen))
    return shown


def client(case: Case) -> str:
    """What the client did and what was done to its update, in a few words."""
    parts = [f"B = {case.batch_size}"]
    if optimizer := case.optimizer:
        momentum = f", momentum {optimizer.momentum:g}" if optimizer.momentum else ""
        steps = "1 step" if case.local_steps == 1 else f"{case.local_steps} steps"
        parts.append(f"{steps} of {optimizer.name}, lr {optimizer.lr:g}{momentum}")
    if case.num_clients > 1:
        parts.append(f"sum of {case.num_clients} clients")
    if case.defence != "none":
        amount = f" {100 * case.strength:.0f} %" if case.strength else ""
        parts.append(f"{case.defence}{amount}" + ("" if case.told else ", attacker not told"))
    return ", ".join(parts)


def where(case: Case) -> str:
    """The case in one line."""
    return f"{case.model} {case.network}, t {_timesteps(case)}, {case.threat.value}, {client(case)}"


def _timesteps(case: Case) -> str:
    first, last = case.timesteps
    return str(first) if first == last else f"{first}-{last}"


def _way(summary: Summary) -> str:
    """Evaluations and seconds to 40 dB."""
    if summary.seconds_to_40_db is None:
        return "-"
    return f"{summary.evaluations_to_40_db:.0f} in {summary.seconds_to_40_db:.1f} s"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
