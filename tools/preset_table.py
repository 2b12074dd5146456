"""Write the table of all settings of the presets into docs/extending.md, between its markers.

    python tools/preset_table.py

`tests/core/test_presets.py` compares the table with `PRESETS`, so no setting can change without the page.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

from adhere.core.presets import PRESETS
from adhere.core.solvers.base import Solver
from adhere.core.transitions import Transition

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BEGIN, END = "<!-- presets -->\n", "<!-- end of presets -->"
OF_A_RUN = {"covariance", "generator", "product_log_snrs"}  # set for each model or each run


def _call(name: str, settings: dict[str, object]) -> str:
    return f"`{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})`"


def _object(part: Solver | Transition) -> str:
    """Return a solver or a transition with all its settings, also those that have their default."""
    names = [field.name for field in fields(part) if field.name not in OF_A_RUN]  # pyright: ignore[reportArgumentType]
    return _call(type(part).__name__, {name: getattr(part, name) for name in names})


def _timesteps(choose: Callable[..., list[float]]) -> str:
    """Return the function that chooses the timesteps with its range of log-SNR."""
    function = choose.func if isinstance(choose, partial) else choose
    ends = [parameter for name, parameter in inspect.signature(choose).parameters.items() if name.startswith("log_snr")]
    return _call(function.__name__, {end.name: end.default for end in ends})


def preset_table() -> str:
    """Return the table as Markdown, one row per preset."""
    rows = [
        f"| `{name}` | {_object(one.solver)} | {_object(one.transition)} | {_timesteps(one.timesteps)} "
        f"| {one.num_steps} | {one.multiscale_max_log_snr:g} |"
        for name, one in PRESETS.items()
    ]
    head = "| preset | solver | transition | timesteps | steps | several scales below log-SNR |"
    return "\n".join([head, "| --- | --- | --- | --- | ---: | ---: |", *rows]) + "\n"


def main() -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{preset_table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
