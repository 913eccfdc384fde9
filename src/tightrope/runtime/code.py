"""Running the functions of code nodes: async ones on the loop, sync ones on threads of their own."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

THREADS = 32
"""Sync functions that may run at once; further ones wait for a thread."""


class CodeRunner:
    """Calls functions named `module:function` with the inputs of a node."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tightrope-code")

    async def run(self, name: str, arguments: Mapping[str, Json]) -> Json:
        """The function's result as JSON.

        Raises whatever the function raises, and InvalidInput when it cannot be found or its result is not JSON.
        A cancelled sync function runs to its end on its thread, unheard.
        """
        function = find_function(name)
        try:
            if inspect.iscoroutinefunction(function):
                value = await function(**arguments)
            else:
                loop = asyncio.get_running_loop()
                value = await loop.run_in_executor(self._threads, _carried, function, arguments)
        except SystemExit as error:
            raise RuntimeError(f"it asked the interpreter to end ({error})") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RuntimeError("it awaited something that was cancelled") from error
        return _as_json(value, name)

    def close(self) -> None:
        """Take no further work; functions under way are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@lru_cache(maxsize=1024)
def find_function(name: str) -> Callable[..., Any]:
    """The function of this name. Raises InvalidInput when it cannot be imported."""
    module_name, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"the function {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise InvalidInput(f"{name!r} is not a function")
    return found


def _carried(function: Callable[..., Any], arguments: Mapping[str, Json]) -> object:
    """Call a sync function on its thread. No future can carry a StopIteration, so it is told as another error."""
    try:
        return function(**arguments)
    except StopIteration as error:
        raise RuntimeError("it raised StopIteration: `next` found nothing") from error


def _as_json(value: object, name: str) -> Json:
    """The value as it looks after a trip through JSON, so that no node can hand on a shared object."""
    try:
        plain: Json = json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} returned what is not JSON: {error}") from error
    return plain
