"""A line of text on the console, exactly as it is."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print without markup, colours of guessed meaning, or breaks that would split a path."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
