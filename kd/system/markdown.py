"""Tables in Markdown."""

from collections.abc import Sequence

from kd.system.errors import printable


def table(header: Sequence[str], rows: Sequence[Sequence[str]], aligned: bool = False) -> list[str]:
    """Return the lines of a table. `aligned` pads the cells, for reading it in a terminal.

    A name with a "|" is escaped, otherwise it would be two cells.
    """
    cells = [[printable(cell).replace("|", r"\|") for cell in row] for row in (header, *rows)]
    if not aligned:
        lines = [f"| {' | '.join(row)} |" for row in cells]
        return [lines[0], "|---" * len(header) + "|", *lines[1:]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append(f"| {' | '.join(padded)} |")
    return lines
