"""Noise schedules and prediction types, read from diffusers' schedulers.

Only the noise levels are used: the steps between them belong to adhere's solvers and transitions.
"""

import logging
import math
from functools import cache
from typing import Any

from adhere.core.schedules import DDPMSchedule, FlowSchedule, PredictionType, Schedule
from adhere.errors import AdhereError

_logger = logging.getLogger(__name__)


def noise_schedule(scheduler: Any, num_tokens: int = 0) -> tuple[Schedule, PredictionType]:
    """Return the noise schedule of a diffusers scheduler, and what its network predicts.

    Args:
        scheduler: any scheduler of diffusers with `alphas_cumprod`, or a flow-matching one.
        num_tokens: the tokens of the picture in a transformer, on which the shift of a flow may depend (dynamic
            shifting).

    Raises:
        AdhereError: if the noise levels or the prediction type are not understood.
    """
    config, name = scheduler.config, type(scheduler).__name__
    is_multistep = any(hasattr(scheduler, history) for history in ("model_outputs", "ets", "derivatives"))
    if (table := getattr(scheduler, "alphas_cumprod", None)) is not None:
        prediction_type, known = config.get("prediction_type", "epsilon"), ("epsilon", "sample", "v_prediction")
        if prediction_type not in known:
            raise AdhereError(f"prediction_type '{prediction_type}' of {name}: {', '.join(known)} are understood")
        if is_multistep:
            _log_multistep(name)
        spacing, steps_offset = config.get("timestep_spacing", "leading"), int(config.get("steps_offset", 0))
        return DDPMSchedule(tuple(table.double().tolist()), spacing, steps_offset), prediction_type
    if name.startswith("FlowMatch") and not config.get("invert_sigmas"):
        return _flow_schedule(config, num_tokens), "flow_prediction"
    kind = "with EDM's preconditioning" if name.startswith("EDM") else f"for the noise levels of {name}"
    raise AdhereError(
        f"scheduler {name}: a network that was trained {kind} is not supported; supported are those trained with a "
        "table of alphas_cumprod (as in DDIMScheduler and EulerDiscreteScheduler), and flow matching"
    )


def _flow_schedule(config: Any, num_tokens: int) -> FlowSchedule:
    """Return the flow schedule, whose shift may grow with the tokens (Esser et al., 2024, section 5.3.2)."""
    scale = float(config["num_train_timesteps"])
    if not config.get("use_dynamic_shifting"):
        shift = float(config["shift"])
        return FlowSchedule(scale, shift, s_end=shift / (scale + shift - 1))  # diffusers shifts the last one twice
    few, many = config["base_image_seq_len"], config["max_image_seq_len"]
    low, high = config["base_shift"], config["max_shift"]
    mu = low + (high - low) * (num_tokens - few) / (many - few)
    shift = mu if config["time_shift_type"] == "linear" else math.exp(mu)
    return FlowSchedule(scale, shift, s_end=1 / scale)


@cache  # once per scheduler
def _log_multistep(name: str) -> None:
    _logger.warning("%s: only its noise levels are used; the steps between them are those of adhere's solvers", name)
