"""Printing tables: in a terminal they fit its width, elsewhere (a pipe, a file) they take the width they need."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(content: "Callable[[int | None], RenderableType]") -> None:
    """Print what ``content`` makes for a width in characters, None meaning without a limit."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    if console.is_terminal:
        console.print(content(console.width))
        return
    made = content(None)
    needed = console.measure(made, options=console.options.update(width=1_000_000)).maximum
    Console(soft_wrap=False, width=max(1, needed)).print(made)
