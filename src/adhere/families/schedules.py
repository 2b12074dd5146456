"""Noise levels and prediction types, read from diffusers' schedulers.

Only the levels are taken: the steps from one to the next are the solvers' own (`adhere.core.sample`).
"""

import logging
import math
from functools import cache
from typing import Any

from adhere.core.schedule import Discrete, PredictionType, RectifiedFlow, Schedule
from adhere.errors import AdhereError

logger = logging.getLogger(__name__)


def noise_schedule(scheduler: Any, tokens: int = 0) -> tuple[Schedule, PredictionType]:
    """The schedule, and what the network predicts.

    tokens: of the picture, as a transformer sees it, from which a flow with dynamic shifting takes its shift. Raises
    AdhereError for a scheduler whose levels cannot be read.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if any(hasattr(scheduler, memory) for memory in ("model_outputs", "ets", "derivatives")):
        _note_multistep(name)
    if (table := getattr(scheduler, "alphas_cumprod", None)) is not None:
        prediction, known = config.get("prediction_type", "epsilon"), ("epsilon", "sample", "v_prediction")
        if prediction not in known:
            raise AdhereError(f"prediction_type '{prediction}' of {name}: {', '.join(known)} are understood")
        spacing, offset = config.get("timestep_spacing", "leading"), int(config.get("steps_offset", 0))
        return Discrete(tuple(table.double().tolist()), spacing, offset), prediction
    if name.startswith("FlowMatch") and not config.get("invert_sigmas"):
        return _flow(config, tokens), "flow"
    raise AdhereError(
        f"the noise levels of {name} cannot be read; save the model with a DDIMScheduler, "
        "or a flow model with a FlowMatchEulerDiscreteScheduler"
    )


def _flow(config: Any, tokens: int) -> RectifiedFlow:
    """Esser et al. (2024), section 5.3.2: the more tokens, the more steps at high noise."""
    count = float(config["num_train_timesteps"])
    if not config.get("use_dynamic_shifting"):
        shift = float(config["shift"])
        return RectifiedFlow(count, shift, last=shift / (count + shift - 1))  # diffusers shifts its least level twice
    few, many = config["base_image_seq_len"], config["max_image_seq_len"]
    low, high = config["base_shift"], config["max_shift"]
    mu = low + (high - low) * (tokens - few) / (many - few)
    return RectifiedFlow(count, mu if config["time_shift_type"] == "linear" else math.exp(mu), last=1 / count)


@cache  # once a scheduler
def _note_multistep(name: str) -> None:
    logger.warning("%s: its noise levels are used, its multistep update is not; each solver has steps of its own", name)
