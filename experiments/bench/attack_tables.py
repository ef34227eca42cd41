"""The tables of the benchmark of the attacks: one per suite, one over all its timesteps, and the race to 40 dB."""

from collections.abc import Sequence

from attacks.observation import ThreatModel
from experiments.bench.attack_measurement import REACHED_DB
from experiments.bench.benchmark import Row
from experiments.bench.cases import Case
from experiments.bench.summary import Summary, pool_timesteps, summarise
from experiments.bench.tables import Table
from experiments.summary import RECOGNISABLE_DB

BASELINE = "gidm-published"
"""The contender that the others' speed is compared with."""


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table per suite, contenders of one case side by side; then the suites' ranges of timesteps pooled, and the
    race to 40 dB of the suite ``speed``.
    """
    summaries = summarise(rows)
    races = [s for s in summaries if s.case.suite == "speed" and s.case.threat is ThreatModel.KNOWN]
    return [
        *_suite_tables(summaries),
        *_suite_tables(summarise(pool_timesteps(rows)), ", over all timesteps"),
        *_races(races),
    ]


def _suite_tables(summaries: Sequence[Summary], suffix: str = "") -> list[Table]:
    cases = list(dict.fromkeys(summary.case for summary in summaries))
    summaries = sorted(summaries, key=lambda summary: cases.index(summary.case))
    suites = dict.fromkeys(summary.case.suite for summary in summaries)
    return [_suite_table(suite + suffix, [s for s in summaries if s.case.suite == suite]) for suite in suites]


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
    "revision",
)

_BRIEF = ("case", "attack", "dB", f">= {RECOGNISABLE_DB:.0f} dB", "timesteps", f"to {REACHED_DB:.0f} dB")


def _suite_table(suite: str, summaries: Sequence[Summary]) -> Table:
    notes = [
        f"{describe_case(summary.case)}, {summary.attack}: {count} of {summary.victims} failed: {reason}"
        for summary in summaries
        for reason, count in summary.failures.items()
    ]
    notes += [
        f"{describe_case(summary.case)}, {summary.attack}: labels {describe_verdicts(summary.labels)}"
        for summary in summaries
        if summary.labels
    ]
    return Table(suite, _HEADINGS, [_suite_row(summary) for summary in summaries], notes, _BRIEF)


def _suite_row(summary: Summary) -> tuple[str, ...]:
    return (
        describe_case(summary.case),
        summary.attack,
        str(summary.victims),
        f"{summary.median_psnr:.1f}",
        f"{summary.lower_quartile:.1f}-{summary.upper_quartile:.1f}",
        f"{summary.least_psnr:.1f}",
        f"{100 * summary.share_recognisable:.0f} %",
        describe_verdicts(summary.timesteps),
        _number(summary.evaluations, ".0f"),
        _number(summary.seconds, ".1f"),
        _time_to_threshold(summary),
        summary.revision,
    )


def describe_verdicts(timesteps: dict[str, int] | None) -> str:
    """How many timesteps, or labels, were recovered exactly / not at all / wrongly."""
    return "/".join(str(timesteps[name]) for name in ("exact", "unknown", "wrong")) if timesteps else "given"


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
    return [Table(title, headings, [(*map(_time_to_threshold, summaries), winner)], notes)]


def describe_client(case: Case) -> str:
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
        parts.append(f"{case.defence}{amount}" + ("" if case.defence_known else ", defence unknown"))
    if case.prediction_type != "epsilon":
        parts.append(case.prediction_type)
    if case.dtype != "float32":
        parts.append(case.dtype)
    return ", ".join(parts)


def describe_case(case: Case) -> str:
    """The case in one line."""
    images = "" if case.images == "bundled" else f", {case.images}"
    return f"{case.model} {case.network}{images}, t {_timesteps(case)}, {case.threat.value}, {describe_client(case)}"


def _timesteps(case: Case) -> str:
    first, last = case.timesteps
    return str(first) if first == last else f"{first}-{last}"


def _time_to_threshold(summary: Summary) -> str:
    """Evaluations and seconds to 40 dB."""
    if summary.seconds_to_40_db is None:
        return "-"
    return f"{summary.evaluations_to_40_db:.0f} in {summary.seconds_to_40_db:.1f} s"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
