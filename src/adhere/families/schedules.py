"""Noise levels and prediction types, read from diffusers' schedulers."""

from typing import Any

from adhere.core.schedule import Discrete, PredictionType, RectifiedFlow, Schedule
from adhere.errors import AdhereError


def noise_schedule(scheduler: Any) -> tuple[Schedule, PredictionType]:
    """The schedule, and what the network predicts.

    Only the noise levels are taken: a multistep scheduler serves as well as DDIM's, since the steps are ours. Raises
    AdhereError for a scheduler whose levels cannot be read.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if (table := getattr(scheduler, "alphas_cumprod", None)) is not None:
        prediction, known = config.get("prediction_type", "epsilon"), ("epsilon", "sample", "v_prediction", "flow")
        if prediction not in known:
            raise AdhereError(f"prediction_type '{prediction}' of {name}: {', '.join(known)} are understood")
        spacing, offset = config.get("timestep_spacing", "leading"), int(config.get("steps_offset", 0))
        return Discrete(tuple(table.double().tolist()), spacing, offset), prediction
    if name.startswith("FlowMatch"):
        return RectifiedFlow(float(config["num_train_timesteps"]), float(config["shift"])), "flow"
    raise AdhereError(
        f"the noise levels of {name} cannot be read; save the model with a DDIMScheduler, "
        "or a flow model with a FlowMatchEulerDiscreteScheduler"
    )
