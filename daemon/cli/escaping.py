"""What others wrote, on its way to a terminal."""


def shown(value: object) -> str:
    """Show a value in one line; what cannot be printed is escaped, for AE titles are hostile."""
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def plain(value: object) -> str:
    """Show a value in one line where Rich reads markup: it is neither that nor a command."""
    from rich.markup import escape  # `status --json` loads no rich

    return escape(shown("" if value is None else value))
