"""Lengths of messages: bounded, without addresses in memory, and on one line.

This module needs nothing but the standard library: it is part of the script that predicts images
without this program (`kd.studies.export.script`).
"""

import re

LONGEST = 500  # characters of a message
LONG_WORD = 80  # characters of a word of a message that is too long
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def shortened(text: str, width: int) -> str:
    """Return `text` with dots for its middle if it has more than `width` characters."""
    if len(text) <= width:
        return text
    kept = width - 3
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"


def bounded(line: str) -> str:
    """Return a message with at most LONGEST characters and without addresses in memory.

    It begins with what is wrong and ends with what to do. So long words, such as paths, are
    shortened first, and then the middle is left out.
    """
    line = _ADDRESS.sub("", line)
    if len(line) <= LONGEST:
        return line
    words = [shortened(word, LONG_WORD) for word in line.split(" ")]
    return shortened(" ".join(words), LONGEST)


def first_line(error: BaseException, width: int = 160) -> str:
    """Return the first line of the text of an error that another library raised.

    It is the name of its class if there is no text, has at most `width` characters, and no
    addresses in memory.
    """
    lines = _ADDRESS.sub("", str(error)).strip().splitlines()
    return shortened(lines[0].strip(), width) if lines else type(error).__name__


def printable(text) -> str:
    """Return `text` on one line, with characters escaped that cannot be encoded.

    File names are not necessarily valid UTF-8.
    """
    encoded = str(text).encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8").replace("\n", " ")
