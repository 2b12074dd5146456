"""Progress of a running request: the residual beside the progress bar, and a preview in a file."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adhere.apps import _process
from adhere.io.images import save_picture
from adhere.tasks._pixels import rgb_image

if TYPE_CHECKING:
    from adhere.pipelines.base import ConstrainedPipeline

_SECONDS_BETWEEN_PREVIEWS = 1.0


def step_callback(
    pipe: "ConstrainedPipeline", preview: Path | None, shows_residual: bool
) -> Callable[..., None] | None:
    """Return the callback for the noise levels of the pipeline, or None if nothing is to be shown.

    Args:
        pipe: the pipeline.
        preview: the file for the current state of the part that is being sampled, or None.
        shows_residual: whether the progress bar shows the residual.
    """
    last_written = -_SECONDS_BETWEEN_PREVIEWS
    bar: Any = None
    make_bar = type(pipe).progress_bar

    def remember_bar(*args: Any, **kwargs: Any) -> Any:
        nonlocal bar
        bar = make_bar(pipe, *args, **kwargs)
        return bar

    pipe.progress_bar = remember_bar

    def show(pipe: "ConstrainedPipeline", step: int, t: float, tensors: dict[str, Tensor]) -> None:
        nonlocal last_written
        if "residual" in tensors:
            bar.set_postfix_str(f"residual {float(tensors['residual'].max()):.3f}")
        now = time.monotonic()
        is_last = step + 1 == pipe._num_timesteps
        if preview is not None and (is_last or now - last_written >= _SECONDS_BETWEEN_PREVIEWS):
            with _process.silenced_stderr():
                save_picture(rgb_image(pipe.decode(tensors["x0"][:1])[0]), preview, force=True)
            _process.set_preview(str(preview))
            last_written = now

    return show if preview is not None or shows_residual else None
