"""Work in several processes that end together."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from experiments.stopping import follow_parent
from fl_sim.config import SettingsError

Task = TypeVar("Task")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """The results as they come, from that many processes; from this very one if one is enough.

    Raises:
        SettingsError: if a process dies.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=follow_parent) as pool:
        try:
            for future in as_completed([pool.submit(function, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            reason = "one of them died, most likely for want of memory; fewer may do"
            raise SettingsError(f"--jobs {workers}: {reason}") from error
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
