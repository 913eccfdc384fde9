"""What all verbs share: common options, exit codes, the one JSON object, errors as people read them.

A verb is a function that returns an Answer; this file says it. Text for people goes to standard error, data to
standard output.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec, cast

import click

from tightrope.model.errors import (
    EngineFailed,
    InvalidConfig,
    InvalidInput,
    InvalidWorkflow,
    NotFound,
    Problem,
    Rejected,
    StoreFailed,
    TightropeBug,
    TightropeError,
)
from tightrope.model.json import Json

DONE = 0
ANSWER_IS_NO = 1
WRONG_USAGE = 2
UNKNOWN_THING = 3
UNREACHABLE = 4
REFUSED = 5
INTERNAL = 70
UNSAFE = 78
INTERRUPTED = 130

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Common:
    """The options every verb has."""

    config: Path
    as_json: bool
    quiet: bool

    def say(self, text: str) -> None:
        """Something for people that is no result: progress, a hint. Left out with --quiet."""
        if not self.quiet:
            click.echo(text, err=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a verb has to say: data for machines, text for people, and how it ended.

    `text` goes to standard error. `output` goes to standard output unless `--json` is given: something to be
    piped or kept, like a schema or a key.
    """

    data: Json = None
    text: str = ""
    output: str = ""
    problems: tuple[Problem, ...] = ()
    code: int = DONE


class Refused(TightropeError):
    """The verb would do harm: overwrite something, or it lacks a right. The cure is part of the message."""


class Unreachable(TightropeError):
    """A runtime or an engine does not answer."""


class Unsafe(TightropeError):
    """It would not be safe to start; `problems` say why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("not started, because it would not be safe:\n" + "\n".join(map(str, problems)))
        self.problems = tuple(problems)


def verb(name: str) -> Callable[[Callable[Concatenate[Common, P], Answer]], Callable[P, None]]:
    """Make a function `(common, ...) -> Answer` the body of a click command: adds the options, says the answer."""

    def decorate(body: Callable[Concatenate[Common, P], Answer]) -> Callable[P, None]:
        @functools.wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            common = _common(kwargs)
            answer = _answered(common, lambda: body(common, *args, **kwargs))
            _say(name, common, answer)
            if answer.code != DONE:
                raise click.exceptions.Exit(answer.code)

        return cast(Callable[P, None], _common_options(run))

    return decorate


def program(commands: Sequence[click.Command]) -> click.Group:
    """The whole command, from its verbs."""

    @click.group("tightrope", cls=_Program, no_args_is_help=True)
    @_common_options
    @click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_say_version,
                  help="Say the version and stop.")  # fmt: skip
    def tightrope(**_: object) -> None:
        """Serve foundation-model workflows on time."""

    for command in commands:
        tightrope.add_command(command)
    return tightrope


def object_line(name: str, data: Json, problems: Sequence[Problem] = (), ok: bool = True) -> str:
    """The one JSON object of a verb, as a line."""
    errors: list[Json] = [problem_json(problem) for problem in problems]
    whole: Json = {"schema": f"tightrope.{name}/1", "ok": ok, "data": data, "errors": errors}
    return json.dumps(whole, ensure_ascii=False, allow_nan=False)


def problem_json(problem: Problem) -> Json:
    """A problem as an entry of `errors`."""
    return {
        "code": problem.code,
        "path": ".".join(problem.path),
        "message": problem.message,
        "cause": problem.cause,
        "next": problem.cure,
        "line": problem.line,
        "column": problem.column,
    }


# --- options ---------------------------------------------------------------------------------------------


def _common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the common options to a click function."""
    options = (
        click.option("--quiet", is_flag=True, help="Say only what was asked for."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output."),
        click.option(
            "--config", type=click.Path(path_type=Path), metavar="FILE", help="Default: ./tightrope.yaml"
        ),
    )
    for option in options:
        function = option(function)
    return function


def _common(own: dict[str, Any]) -> Common:
    """The common options, taken out of a verb's own; those given before the verb count too."""
    parent = click.get_current_context().find_root().params
    config = own.pop("config") or parent.get("config")
    as_json, quiet = own.pop("as_json"), own.pop("quiet")
    return Common(
        config=config or Path("tightrope.yaml"),
        as_json=bool(as_json or parent.get("as_json")),
        quiet=bool(quiet or parent.get("quiet")),
    )


def _say_version(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        try:
            click.echo(f"tightrope {version('tightrope')}")
        except PackageNotFoundError:
            click.echo("tightrope, run from its source without being installed")
        context.exit(DONE)


# --- answers ---------------------------------------------------------------------------------------------


def _answered(common: Common, body: Callable[[], Answer]) -> Answer:
    """What the verb says, or what its error says. Errors that nobody foresaw pass."""
    try:
        return body()
    except InvalidConfig as error:
        text = drawn(error.problems, error.source, _read(Path(error.source)))
        count = "1 error" if len(error.problems) == 1 else f"{len(error.problems)} errors"
        return Answer(None, f"{text}\n{count}, nothing started", problems=error.problems, code=WRONG_USAGE)
    except InvalidWorkflow as error:
        return Answer(None, str(error), problems=error.problems, code=WRONG_USAGE)
    except Unsafe as error:
        text = drawn(error.problems, str(common.config), _read(common.config))
        return Answer(None, f"{text}\nnot safe to start", problems=error.problems, code=UNSAFE)
    except TightropeBug:
        raise
    except TightropeError as error:
        code_name, code = _exit_of(error)
        problem = Problem(code_name, (), str(error), "")
        return Answer(None, f"tightrope: {error}", problems=(problem,), code=code)


def _exit_of(error: TightropeError) -> tuple[str, int]:
    match error:
        case NotFound():
            return "not_found", UNKNOWN_THING
        case Unreachable() | EngineFailed():
            return "unreachable", UNREACHABLE
        case Refused() | Rejected():
            return "refused", REFUSED
        case InvalidInput():
            return "invalid", WRONG_USAGE
        case StoreFailed():
            return "store_failed", ANSWER_IS_NO
        case _:
            return "failed", ANSWER_IS_NO


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _say(name: str, common: Common, answer: Answer) -> None:
    if answer.text and not (common.quiet and common.as_json and answer.code == DONE):
        click.echo(answer.text, err=True)
    if common.as_json:
        click.echo(object_line(name, answer.data, answer.problems, answer.code == DONE))
    elif answer.output:
        click.echo(answer.output, nl=not answer.output.endswith("\n"))


def drawn(problems: Sequence[Problem], source: str, text: str) -> str:
    """Problems as people read them, each under its line of `text`."""
    from tightrope.flow.places import render_problem

    return "\n".join(render_problem(problem, source, text) for problem in problems)


# --- the whole command -----------------------------------------------------------------------------------


class _Program(click.Group):
    """A group that turns usage errors, interrupts and bugs into their exit codes, with --json too."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002 - always ends in an exit code of ours
        **extra: Any,
    ) -> NoReturn:
        words = sys.argv[1:] if args is None else list(args)
        code: object
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            code = self._wrong_usage(error, words)
        except (click.Abort, KeyboardInterrupt):
            code = INTERRUPTED
            click.echo("interrupted", err=True)
        except Exception as error:  # noqa: BLE001 - the outermost boundary: a bug becomes a report
            code = self._bug(error, words)
        sys.exit(code if isinstance(code, int) else DONE)

    def _wrong_usage(self, error: click.ClickException, words: Sequence[str]) -> int:
        error.show()
        if "--json" in words:
            problem = Problem("wrong_usage", (), error.format_message(), "see --help")
            click.echo(object_line(self._verb_in(words), None, (problem,), ok=False))
        return WRONG_USAGE

    def _bug(self, error: Exception, words: Sequence[str]) -> int:
        report = _report(error)
        message = (
            f"internal error: {type(error).__name__}; report {report.stem.removeprefix('tightrope-report-')}"
        )
        cure = f"please report it with {report}"
        click.echo(f"tightrope: {message}\n   next:  {cure}", err=True)
        if "--json" in words:
            problem = Problem("internal_error", (), message, cure)
            click.echo(object_line(self._verb_in(words), None, (problem,), ok=False))
        return INTERNAL

    def _verb_in(self, words: Sequence[str]) -> str:
        return next((word for word in words if word in self.commands), "tightrope")


def _report(error: Exception) -> Path:
    """Write the traceback where its owner alone can read it."""
    handle, name = tempfile.mkstemp(prefix="tightrope-report-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))
    return Path(name)
