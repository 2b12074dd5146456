"""The one error that is meant for the person at the keyboard."""


class AdhereError(Exception):
    """Bad input: its message is one line, shown to the user as it is."""
