"""Exceptions whose messages are written for the user."""


class AdhereError(Exception):
    """An input or a setting is not valid. The message is one line that says what was given and how to correct it."""


class OutOfMemory(AdhereError):
    """The picture, the batch or the model does not fit into the memory of the device."""


class AdhereWarning(UserWarning):
    """A result that was written differs from what might be expected. The message is one line that says how."""


class InvalidInput(AdhereError, ValueError, TypeError):
    """An argument has an impossible value or type: what checks of arguments raise.

    It is both a ValueError and a TypeError: where a docstring of `core` or `pipelines` says that one of these is
    raised, it is this error.
    """
