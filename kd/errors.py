"""One exception for everything a user can mend, with the exit code that a shell loop can act on."""

import sys

USAGE, DIVERGED, BAD_CHECKPOINT, CANNOT_WRITE, BUSY, INTERRUPTED, TERMINATED = 2, 3, 4, 74, 75, 130, 143


class Problem(Exception):
    """Ends the program with one line on stderr, `error: MESSAGE`, and an exit code.

    The message says what, where, why and what to do: "<what> '<value>' in <where>: <why>; <what to do>".
    """

    def __init__(self, message: str, code: int = USAGE):
        super().__init__(message)
        self.code = code


def run_main(main) -> int:
    """Call a script's `main()` and turn its problems into one line and an exit code."""
    try:
        return main() or 0
    except Problem as problem:
        print(f"error: {printable(problem)}", file=sys.stderr)
        return problem.code
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED


def first_ten(items: list[str]) -> str:
    """The first ten of a list of faults, and how many there are in all."""
    return ", ".join(items[:10]) + (f", ... ({len(items)} in all)" if len(items) > 10 else "")


def printable(text) -> str:
    """`text` on one line, with what a terminal cannot show escaped (file names need not be UTF-8)."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", " ")
