"""What somebody who waits sees of many tasks: a bar of all, what each running one printed last, a line as each ends."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from newllm_core.batch.tasks import Ended, Engine, Task, last_words, times_begun
from newllm_core.runs.progress import SECONDS_BETWEEN_DRAWINGS, progress_bar

_SHOWN_CHARACTERS = 60  # of what each running task says
_SHOWN_TASKS = 4


def ended_as_shown(
    engine: Engine, tasks: Sequence[Task], judged: Callable[[int, Ended], Ended]
) -> Iterator[tuple[int, Ended]]:
    """As ``Engine.run``; shown meanwhile. ``judged``: what the end of the task at a place counts as and is shown as."""
    running, over = dict(enumerate(tasks)), threading.Event()
    earlier = [times_begun(task.log) for task in tasks]
    bar = progress_bar(total=len(tasks), desc="runs", unit="run")
    watcher = threading.Thread(target=_watch, args=(bar, running, earlier, over), daemon=True)
    with bar:
        watcher.start()
        try:
            for place, ended in engine.run(tasks):
                running.pop(place)
                ended = judged(place, ended)
                bar.update()
                bar.write(line_of(len(tasks) - len(running), len(tasks), tasks[place], ended))
                yield place, ended
        finally:
            over.set()
            watcher.join()


def line_of(number: int, count: int, task: Task, ended: Ended) -> str:
    reason = f": {ended.error} ({task.log})" if ended.error else ""
    return f"[{number}/{count}] {task.name} {ended.status} in {ended.seconds:.1f} s{reason}"


def _watch(bar: Any, running: dict[int, Task], earlier: Sequence[int], over: threading.Event) -> None:
    """Beside the bar, what the tasks print that have begun since; on a terminal only, since a file would fill."""
    if not os.isatty(2):
        return
    while not over.wait(SECONDS_BETWEEN_DRAWINGS):
        begun = [task for place, task in list(running.items()) if times_begun(task.log) > earlier[place]]
        words = [last_words(task.log)[:_SHOWN_CHARACTERS] for task in begun[:_SHOWN_TASKS]]
        bar.set_postfix_str(" | ".join(words))
