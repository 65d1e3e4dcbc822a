"""Progress of a training run on the terminal: share done, score, return, steps/s, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from training.config import TrainConfig
from training.runner import Report


@contextmanager
def training_progress(console: Console, config: TrainConfig) -> Iterator[Callable[[Report], None]]:
    """A progress bar as a context; what it yields takes each ``Report`` of ``runner.run``."""
    columns = (
        TextColumn("task {task.fields[task_id]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        handle = bar.add_task("train", total=1.0, task_id=config.task, status="compiling")

        def show(report: Report) -> None:
            row = report.row
            status = (
                f"score {row['score']:.3f}  return {row['return']:.1f}  "
                f"{row['steps_per_second']:,.0f} steps/s  {report.seconds_left:.0f} s left"
            )
            bar.update(handle, completed=report.done, status=status)

        yield show
