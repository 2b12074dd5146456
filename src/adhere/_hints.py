"""Messages for unknown keyword arguments that say what to write instead."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import TypeVar, cast

_T = TypeVar("_T", bound=Callable)


def keyword_hints(**hints: str) -> Callable[[_T], _T]:
    """Return a decorator that makes the TypeError for an unknown keyword say what to write instead.

    Args:
        hints: the hint for each keyword that is often tried; for others, the closest valid name is suggested.
    """

    def decorate(function: _T) -> _T:
        target: Callable = getattr(function, "__init__") if isinstance(function, type) else function  # noqa: B009
        allowed = inspect.signature(target).parameters

        @functools.wraps(target)
        def checked(*args: object, **kwargs: object) -> object:
            for name in kwargs:
                if name not in allowed:
                    raise TypeError(
                        _unknown_keyword(function.__name__, name, [one for one in allowed if one != "self"], hints)
                    )
            return target(*args, **kwargs)

        if isinstance(function, type):
            setattr(function, "__init__", checked)  # noqa: B010
            return cast(_T, function)
        return cast(_T, checked)

    return decorate


def _unknown_keyword(function: str, name: str, allowed: list[str], hints: dict[str, str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = hints.get(name) or (f"did you mean {near[0]}=?" if near else f"there are {', '.join(allowed)}")
    return f"{function}() has no argument '{name}': {hint}"
