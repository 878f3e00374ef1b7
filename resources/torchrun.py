"""`torchrun` through Dagster Pipes: what the ranks of a training say while they run, and what they tell of themselves.

The ranks' first process writes messages into a file that Dagster reads as they come (`resources.worker`): lines go into the run's event log.
`dg.PipesSubprocessClient` does the same around a process of its own; here `model.launching` starts and ends the process, since it also has to
let ranks save their state, to wait for that, and to name the rank that failed.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import dagster as dg

Session = Callable[[Callable[[Mapping[str, Any]], None]], Any]


def pipes_session(context: dg.AssetExecutionContext) -> Session:
    """A function that opens a Pipes session for an asset: `with session(hear) as environment`.

    `environment` are the variables that the ranks need; `hear` gets the facts that they reported, once they are gone.
    """

    @contextmanager
    def session(hear: Callable[[Mapping[str, Any]], None]) -> Iterator[Mapping[str, str]]:
        opened = dg.open_pipes_session(
            context=context, context_injector=dg.PipesTempFileContextInjector(), message_reader=dg.PipesTempFileMessageReader()
        )
        with ExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.PreviewWarning)  # Dagster warns of what it uses itself
                pipes = stack.enter_context(opened)
            yield pipes.get_bootstrap_env_vars()
        for facts in pipes.get_custom_messages():
            hear(facts)

    return session
