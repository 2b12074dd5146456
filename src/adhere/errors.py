"""What is meant for the person at the keyboard."""


class AdhereError(Exception):
    """Bad input: its message is one line, shown to the user as it is."""


class OutOfMemory(AdhereError):
    """The picture, the batch or the model is too large for the device."""
