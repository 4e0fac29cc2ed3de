"""The live panel on a terminal: a bar, and the figures of the training under it, in whatever width there is.

It gets plain numbers, and knows neither models nor trainers.
"""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

T = TypeVar("T")

# figure -> how it is shown; in this order
FIGURES = {
    "loss": "loss {:.4f}",
    "lr": "lr {:.1e}",
    "fidelity": "fidelity {:.3f}, rising",
    "images_per_second": "{:,.0f} images/s",
    "waiting": "data wait {:.0%}",
    "memory_mib": "memory {:,.0f} MiB",
}
SHORTEST_BAR = 10


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    named = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    while len(named) > 1 and not named[0][0]:
        del named[0]
    return " ".join(f"{number} {unit}" for number, unit in named[:2] if number) or "0 s"


def words(figures: Mapping[str, Any]) -> list[str]:
    """Each figure in words; those that are None are not known yet."""
    shown = [form.format(figures[name]) for name, form in FIGURES.items() if figures.get(name) is not None]
    left = {"arm": figures.get("arm_left"), "run": figures.get("run_left")}
    times = [f"{name} {duration(seconds)} left" for name, seconds in left.items() if seconds is not None]
    return [*shown, *(times[-1:] if left["arm"] == left["run"] else times)]


def wrap(parts: Iterable[str], width: int) -> list[str]:
    """The parts in lines of at most so many columns, none broken; one that is longer by itself is cut."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += "   " + part
        else:
            lines.append(part[:width])
    return lines


class Panel:
    """What is drawn: a title and a bar in one line, or in two if it is narrow, and the figures below.

    Args:
        title: Of what is under way.
        total: Of the bar.
        figures: By the names of FIGURES, and "arm_left" and "run_left" in seconds; may change while it is drawn.
    """

    def __init__(self, title: str, total: int, figures: Mapping[str, Any]):
        self.title, self.total, self.figures = title, total, figures
        self.done, self.start = 0, time.perf_counter()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        width = options.max_width - 1  # in the last column some terminals would break the line
        count = f"{self.done}/{self.total}"
        room = width - len(self.title) - len(count) - 4
        narrow = room < SHORTEST_BAR
        size = max(width - len(count) - 2 if narrow else room, 1)
        bar = ProgressBar(total=max(self.total, 1), completed=self.done, width=size)
        titles = [Text(line, style="bold", no_wrap=True) for line in textwrap.wrap(self.title, width)]
        yield from titles if narrow else titles[:-1]
        line = Text("", no_wrap=True) if narrow else titles[-1].append("  ")
        drawn = Text("", no_wrap=True)
        for segment in console.render(bar, options):
            drawn.append(segment.text, segment.style)
        drawn.append(" " * (size - len(drawn.plain)) + f"  {count}", "default")
        yield line + drawn
        for text in wrap(words(self.figures), width):
            yield Text(text, style="dim", no_wrap=True)


def track(
    items: Iterable[T], title: str, total: int, figures: Mapping[str, Any], console: Console, start: int = 0
) -> Generator[T, None, None]:
    """Yield the items under a panel that disappears when they are through, or are no longer asked for."""
    panel = Panel(title, total, figures)
    panel.done = start
    with Live(panel, console=console, transient=True, refresh_per_second=4):
        for item in items:
            yield item
            panel.done += 1
