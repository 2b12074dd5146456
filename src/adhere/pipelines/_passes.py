"""Tasks, such as `Outpaint`, that are sampled in several passes: the result of a pass is the input of the next one."""

from collections.abc import Callable
from typing import Any, TypeVar

from adhere.errors import AdhereError
from adhere.pipelines._runs import Results, RunOptions
from adhere.tasks.base import ModelInfo, Task

_Output = TypeVar("_Output")


def with_next_passes(
    pipe: Any, out: _Output, results: Results, options: RunOptions, output_type: str, decoder_backward: bool
) -> _Output:
    """Return the output of the last pass, with the cost of all passes and the largest residual of each sample.

    Args:
        pipe: the pipeline.
        out: the `ConstrainedOutput` of the first pass.
        results: the `Results` of the first pass.
        options, output_type, decoder_backward: the arguments of the call.

    Raises:
        AdhereError: if some of the tasks take more passes than others.
    """
    following = _next_tasks(pipe, results)
    if not following:
        return out
    call: Callable[..., Any] = pipe
    later = call(
        following,
        **results.batch.prompts.as_arguments(),
        num_inference_steps=options.num_inference_steps,
        generator=options.generator,
        solver=options.solver,
        decoder_backward=decoder_backward,
        output_type=output_type,
        callback_on_step_end=options.callback,
        callback_on_step_end_tensor_inputs=options.callback_inputs,
    )
    first: Any = out
    later.residual = [max(pair) for pair in zip(first.residual, later.residual, strict=True)]
    later.nfe, later.seconds = first.nfe + later.nfe, first.seconds + later.seconds
    return later


def _next_tasks(model: ModelInfo, results: Results) -> list[Task]:
    """Return the tasks of the next pass, one per sample; empty if all are complete."""
    tasks = [
        None if type(task).next_pass is Task.next_pass else task.next_pass(model, task.postprocess(x, crops))
        for task, x, crops in results.samples()
    ]
    following = [task for task in tasks if task is not None]
    if following and len(following) < len(tasks):
        raise AdhereError("some of the tasks take more passes than others; run them one by one")
    return following
