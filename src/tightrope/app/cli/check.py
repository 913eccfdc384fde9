"""`tightrope check`: the configuration and its workflows, without starting anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tightrope.app.cli.frame import UNKNOWN_THING, WRONG_USAGE, Answer, Common, drawn, problem_json, verb
from tightrope.model.json import Json

if TYPE_CHECKING:
    from tightrope.app.config import Config, Model, Reading
    from tightrope.app.workflows import Fault, Loaded
    from tightrope.model.profile import Profile


@click.command()
@click.option("--effective", is_flag=True, help="Show every value with its origin.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the configuration.")
@click.option("--as-yaml", metavar="REF", help="Print a workflow (FILE or MODULE:NAME) as YAML.")
@verb("check")
def check(common: Common, effective: bool, schema: bool, as_yaml: str | None) -> Answer:
    """Check the configuration, workflows, prompts and guards."""
    from tightrope.app.config import json_schema, read_config, schema_text

    if schema:
        return Answer({"json_schema": json_schema()}, output=schema_text())
    reading = read_config(common.config)
    if as_yaml is not None:
        return _as_yaml(reading.config, as_yaml)
    return _effective(reading) if effective else _checked(reading)


def _effective(reading: Reading) -> Answer:
    settings = reading.settings
    keys = max(len(setting.key) for setting in settings)
    values = min(32, max(len(setting.value) for setting in settings))
    lines = [f"{one.key:<{keys}}  {one.value:<{values}}  {one.origin}" for one in settings]
    rows: list[Json] = [{"key": one.key, "value": one.value, "origin": one.origin} for one in settings]
    return Answer({"settings": rows}, "\n".join(lines))


def _as_yaml(config: Config, ref: str) -> Answer:
    from tightrope.app.workflows import Source, read_source
    from tightrope.flow.document import write_workflow

    found = read_source(config, ref)
    if isinstance(found, Source):
        text = write_workflow(found.workflow)
        return Answer(
            {"workflow": found.workflow.name, "version": found.workflow.version, "yaml": text}, output=text
        )
    is_missing = any(problem.code == "workflow_missing" for problem in found.problems)
    return Answer(
        None, _drawn(found), problems=found.problems, code=UNKNOWN_THING if is_missing else WRONG_USAGE
    )


def _checked(reading: Reading) -> Answer:
    from tightrope.app.compose import with_emulated
    from tightrope.app.workflows import read_sources

    loaded = read_sources(reading.config)
    faults = [*loaded.faults, *_faults_of_config(reading, loaded)]
    faults += _out_of_reach(reading, loaded, with_emulated(reading.config, _measured(reading.config)))
    data = _data(reading.config, loaded)
    if not faults:
        return Answer(data, _summary(reading, loaded))
    problems = tuple(problem for fault in faults for problem in fault.problems)
    count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
    text = "\n".join([*map(_drawn, faults), f"{count}, nothing started"])
    return Answer(data, text, problems=problems, code=WRONG_USAGE)


def _faults_of_config(reading: Reading, loaded: Loaded) -> list[Fault]:
    """Grants of workflows that do not exist; a workflow that could not be read counts as existing."""
    from tightrope.app.config import tenant_problems
    from tightrope.app.workflows import Fault

    if loaded.faults:
        return []
    names = [source.workflow.name for source in loaded.sources]
    problems = reading.located(tenant_problems(reading.config, names))
    return [Fault(reading.shown, reading.text, problems)] if problems else []


def _out_of_reach(reading: Reading, loaded: Loaded, profiles: list[Profile]) -> list[Fault]:
    from tightrope.app.feasible import unreachable
    from tightrope.app.workflows import Fault
    from tightrope.flow.document import located

    faults = []
    for source in loaded.sources:
        for one in unreachable(reading.config, [source.workflow], profiles):
            if one.tenant:
                faults.append(Fault(reading.shown, reading.text, reading.located([one.problem])))
            else:
                problems = located([one.problem], source.text) if source.text else (one.problem,)
                faults.append(Fault(source.name, source.text, problems))
    return faults


def _measured(config: Config) -> list[Profile]:
    """What was measured so far; nothing is made or changed."""
    from tightrope.adapters.store_sqlite import SqliteStore

    if not config.store_file.exists():
        return []
    store = SqliteStore(config.store_file)
    try:
        cards = {(model.name, card) for model in config.models for card in _cards(model)}
        return [profile for profile in store.profiles() if (profile.model, profile.accelerator) in cards]
    finally:
        store.close()


def _cards(model: Model) -> list[str]:
    return [*model.place, *(endpoint.place for endpoint in model.replicas)]


def _summary(reading: Reading, loaded: Loaded) -> str:
    config = reading.config
    counts = (
        _count(len(config.models), "model"),
        _count(len(config.accelerators), "accelerator"),
        _count(len(config.tenants), "tenant"),
        _count(len(loaded.sources), "workflow"),
    )
    return f"{reading.shown}: {', '.join(counts)}; no problems found"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _data(config: Config, loaded: Loaded) -> Json:
    sources: list[Json] = [
        {"name": source.workflow.name, "version": source.workflow.version, "source": source.name}
        for source in loaded.sources
    ]
    faults: list[Json] = [
        {"source": fault.name, "errors": [problem_json(problem) for problem in fault.problems]}
        for fault in loaded.faults
    ]
    return {
        "config": str(config.file),
        "models": [model.name for model in config.models],
        "tenants": [tenant.id for tenant in config.tenants],
        "workflows": sources,
        "faulty": faults,
    }


def _drawn(fault: Fault) -> str:
    return drawn(fault.problems, fault.name, fault.text)
