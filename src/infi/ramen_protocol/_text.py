"""Text that came from outside, made fit for one line of a log or a terminal."""

from __future__ import annotations

MAX_DETAILS_CHARS = 500
"""What is kept of a server's explanation: enough for a sentence or two, too little to flood a log."""


def clean_text(text: str, max_chars: int = MAX_DETAILS_CHARS) -> str:
    """``text`` as one line of printable characters, at most ``max_chars`` of them.

    Everything that is not printable (control characters, terminal escapes, line and paragraph separators,
    marks that turn the writing direction, surrogates) counts as a space; runs of spaces become one. What is
    cut off is marked by a final ``…``.
    """
    # Cut before the work, so that its cost does not grow with what somebody sent.
    head = text[: 4 * max_chars]
    line = " ".join("".join(char if char.isprintable() else " " for char in head).split())
    if len(line) > max_chars or len(head) < len(text):
        line = line[: max_chars - 1] + "…"
    return line
