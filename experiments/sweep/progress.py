"""What a person sees while a sweep goes on: a line for every run that begins or ends, and in a terminal a bar below."""

from time import monotonic

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from experiments.display import Display
from experiments.sweep.processes import Task


class SweepProgress(Display):
    """The progress of so many ``runs``, of which some have ``ended`` before, as a context manager around them."""

    def __init__(self, console: Console, runs: int, ended: int) -> None:
        super().__init__(console, transient=True)
        columns = (SpinnerColumn(), TextColumn("runs"), BarColumn(), MofNCompleteColumn())
        left = (TextColumn("{task.fields[failed]}"), TextColumn("left"), TimeRemainingColumn())
        # Runs may differ by hours, so that the speed of all of them counts, and not the latest.
        self._bar = Progress(*columns, *left, console=console, speed_estimate_period=float("inf"))
        self._task = self._bar.add_task("runs", total=runs, completed=ended, failed="")
        self._runs, self._ended, self._failed = runs, ended, 0
        self._running: dict[str, float] = {}

    def renderable(self) -> RenderableType:
        """The bar, and the runs that are carried out."""
        running = [Text(f"  {name}  {monotonic() - since:.0f} s") for name, since in list(self._running.items())]
        return Group(self._bar.get_renderable(), *running)

    def begun(self, task: Task) -> None:
        """Show that a run has begun."""
        self._running[task.name] = monotonic()
        self.say(f"{task.name}: begun")

    def ended(self, task: Task, outcome: str, failed: bool) -> None:
        """Show what came of a run."""
        seconds = monotonic() - self._running.pop(task.name)
        self._ended, self._failed = self._ended + 1, self._failed + failed
        self._bar.update(self._task, advance=1, failed=f"{self._failed} failed" if self._failed else "")
        self.say(f"{self._ended}/{self._runs} {task.name}: {outcome} in {seconds:.0f} s", in_terminal=True)
