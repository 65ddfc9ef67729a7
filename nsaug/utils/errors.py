"""The error that a user can fix, and how others are shortened to one line."""


class UserError(Exception):
    """Something a user can mend: its text is one line that says what is wrong and what to type instead."""

    def __init__(self, text: str) -> None:
        if text.startswith("Caught ") and "Original Traceback" in text:  # what torch makes of a loading process's error
            text = text.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(text)


def first_line(error: Exception) -> str:
    """The first line of an error's text; the name of its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
