"""The plan of a sweep, as ``fl-sim sweep --dry-run`` prints it."""

from collections.abc import Mapping

from rich.table import Table

from experiments.estimate import MADE_OF, Cost, in_words


def describe(costs: Mapping[str, Cost], repetitions: int, jobs: int) -> tuple[Table, list[str]]:
    """The plan as a table, a row for every run of the first repetition, and in words what it adds up to."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("run", "training", "attacks", "attacking, whole budget"):
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    for name, cost in costs.items():
        table.add_row(name, in_words(cost.training), str(cost.attacks), in_words(cost.attacking))
    runs = repetitions * len(costs)
    least, most = (
        repetitions * sum(seconds) / min(jobs, runs)
        for seconds in ([c.at_least() for c in costs.values()], [c.at_most() for c in costs.values()])
    )
    again = f"{len(costs)} points, {repetitions} repetitions each: " if repetitions > 1 else ""
    total = f"{again}{runs} runs, {min(jobs, runs)} at a time: {in_words(least)} to {in_words(most)}"
    return table, [total, MADE_OF]
