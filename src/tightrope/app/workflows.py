"""The workflows that a configuration names: found, read, and checked against its models.

Owns patterns of files, `module:name` references and where modules are looked for. Reading one text is
`flow/document.py`.
"""

from __future__ import annotations

import glob
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tightrope.app.config import Config
from tightrope.flow import builder
from tightrope.flow.check import check_workflow
from tightrope.flow.document import located, read_workflow
from tightrope.model.errors import InvalidWorkflow, Problem
from tightrope.model.workflow import Workflow

_PYTHON = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Source:
    """A workflow and where it came from; `text` is "" for one written in Python."""

    name: str
    text: str
    workflow: Workflow


@dataclass(frozen=True, slots=True)
class Fault:
    """What keeps a source from being used."""

    name: str
    text: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that was named: what can run, and what cannot."""

    sources: tuple[Source, ...]
    faults: tuple[Fault, ...]


def load_workflows(config: Config) -> tuple[Workflow, ...]:
    """Every workflow of the configuration. Raises InvalidWorkflow for the first that cannot run."""
    loaded = read_sources(config)
    for fault in loaded.faults:
        raise InvalidWorkflow(fault.name, fault.problems)
    return tuple(source.workflow for source in loaded.sources)


def read_sources(config: Config) -> Loaded:
    """Every workflow of the configuration, and all that is wrong with any of them. Imports the modules they name."""
    make_importable(config)
    sources: list[Source] = []
    faults: list[Fault] = []
    for found in _found(config):
        if isinstance(found, Source):
            found = _checked(config, found, sources)
        if isinstance(found, Source):
            sources.append(found)
        else:
            faults.append(found)
    return Loaded(tuple(sources), tuple(faults))


def read_source(config: Config, ref: str) -> Source | Fault:
    """One workflow, by its file or as `module:name`."""
    make_importable(config)
    return _from_python(ref) if _PYTHON.fullmatch(ref) else _from_file(config.folder / ref)


def make_importable(config: Config) -> None:
    """Let modules be found in `workflows.path` and beside the configuration, before anywhere else."""
    for folder in reversed((*config.workflows.path, config.folder)):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


def _found(config: Config) -> Iterator[Source | Fault]:
    for ref in config.workflows.files:
        if _PYTHON.fullmatch(ref):
            yield _from_python(ref)
            continue
        # Path.glob refuses absolute patterns, which a configuration may well hold.
        files = sorted(glob.glob(str(config.folder / ref), recursive=True))  # noqa: PTH207
        if not files:
            message = f"no file fits {ref!r} in {config.folder}"
            yield Fault(
                ref,
                "",
                (Problem("workflow_missing", ("workflows", "files"), message, "correct the pattern"),),
            )
        for file in files:
            yield _from_file(Path(file))


def _from_file(file: Path) -> Source | Fault:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem("workflow_missing", (), f"it cannot be read: {error}", "correct the path")
        return Fault(str(file), "", (problem,))
    try:
        return Source(str(file), text, read_workflow(text, source=str(file), base=file.parent))
    except InvalidWorkflow as error:
        return Fault(str(file), text, error.problems)


def _from_python(ref: str) -> Source | Fault:
    module, _, name = ref.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        built = found.build() if isinstance(found, builder.Workflow) else found
    except InvalidWorkflow as error:
        return Fault(ref, "", error.problems)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything while it is imported
        message = f"it cannot be imported: {type(error).__name__}: {error}"
        cure = "correct the module, or add its folder to workflows.path"
        return Fault(ref, "", (Problem("workflow_missing", (), message, cure),))
    if isinstance(built, Workflow):
        return Source(ref, "", built)
    message = f"it is a {type(built).__name__}, not a workflow"
    return Fault(ref, "", (Problem("workflow_missing", (), message, "name a tightrope.Workflow"),))


def _checked(config: Config, source: Source, before: list[Source]) -> Source | Fault:
    problems = check_workflow(
        source.workflow,
        models=[model.name for model in config.models],
        allow_python=config.workflows.allow_python,
        import_functions=True,
    )
    twin = next((other for other in before if other.workflow.name == source.workflow.name), None)
    if twin is not None:
        message = f'another workflow is called "{source.workflow.name}" too: {twin.name}'
        problems.append(Problem("duplicate_key", ("workflow",), message, "give one of them another name"))
    if not problems:
        return source
    return Fault(source.name, source.text, located(problems, source.text) if source.text else tuple(problems))
