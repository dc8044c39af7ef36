"""Sentences in a terminal: wrapped at words under their beginning; in a pipe, one line each."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text


def tell(console: Console, head: str, words: str, style: str = "") -> None:
    """Print a sentence behind its head; both are text, not markup.

    A pipe gets it whole, for whoever looks for words in it.
    """
    if not console.is_terminal:
        console.print(Text(head + words, style), soft_wrap=True)
        return
    grid = Table.grid()
    grid.add_column(width=len(head), no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(head, style), Text(words, style))
    console.print(grid)
