"""The error class for mistakes that a user can fix, and one-line summaries of other errors."""


class UserError(Exception):
    """A mistake that the user can fix; the message is one line: what is wrong, and what to type instead."""

    def __init__(self, text: str) -> None:
        if text.startswith("Caught ") and "Original Traceback" in text:  # torch re-raises errors of DataLoader workers
            text = text.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(text)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
