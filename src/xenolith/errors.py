"""The errors that a user may see: each says what is wrong and what to do about it."""

from __future__ import annotations


class UserError(Exception):
    """A user's mistake or a host's lack: one line of what is wrong, one of what to do (`hint`, may be empty).

    The command line prints both and ends with exit status 1.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
