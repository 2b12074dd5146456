"""Exceptions whose messages are written for the user."""


class AdhereError(Exception):
    """An input or a setting is not valid. The message is one line that says what was given and how to correct it."""


class OutOfMemory(AdhereError):
    """The picture, the batch or the model does not fit into the memory of the device."""


class AdhereWarning(UserWarning):
    """A result that was written differs from what might be expected. The message is one line that says how."""


class _InvalidValue(AdhereError, ValueError):
    """An argument has an impossible value. Checks of arguments raise it, so that it is one line on the command line."""


class _InvalidType(AdhereError, TypeError):
    """An argument is of the wrong type, or two that do not fit together."""
