"""From an exception to one message on stderr, an exit code, and JSON for machines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from qconvert.formats.refusal import MissingRuntime, Reason, Refused

OK, FAILED, REFUSED, BROKEN, INCONCLUSIVE = 0, 1, 2, 3, 4
FAULT, INTERRUPTED, TERMINATED = 70, 130, 143

KINDS = {
    REFUSED: "refused",
    BROKEN: "broken environment",
    FAULT: "fault",
    INTERRUPTED: "interrupted",
}


REINSTALL = "install qconvert again, from its folder: pip install --force-reinstall ."
DEBUG = "run it again as `qconvert --debug ...` and report what it prints"


def judged(error: Exception) -> tuple[int, list[Reason]]:
    """The exit code of `error`, and what to tell the user."""
    match error:
        case Refused():
            return REFUSED, list(error.reasons)
        case MissingRuntime():
            problem = f"{error.runtime} is not usable here: {error.reason}"
            return BROKEN, [Reason(problem, error.install)]
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "qconvert"
            return REFUSED, [Reason(error.format_message(), f"see {command} --help")]
        case click.ClickException():
            return REFUSED, [Reason(error.format_message())]
        case click.Abort():
            return INTERRUPTED, [Reason("nothing half-written was left")]
        case ImportError():
            return BROKEN, [Reason(f"this installation is not whole: {error}", REINSTALL)]
        case MemoryError():
            return REFUSED, [Reason("not enough memory", "--plan tells how much is needed")]
        case OSError():
            place = f": {error.filename}" if error.filename else ""
            return REFUSED, [Reason(f"{error.strerror or error}{place}")]
        case _:
            problem = f"a fault of qconvert itself: {type(error).__name__}: {error}"
            return FAULT, [Reason(problem, DEBUG)]


def explain(error: Exception, arguments: Sequence[str]) -> int:
    """Tell what went wrong on stderr, and where --json asks for it; return the exit code."""
    code, reasons = judged(error)
    head = f"qconvert: {KINDS[code]}"
    if len(reasons) > 1:
        head += f", {len(reasons)} reasons"
    lines = [f"  {line}" for reason in reasons for line in str(reason).splitlines()]
    click.echo("\n".join([f"{head}:", *lines]), err=True)
    where = report_asked_for(arguments)
    if where is not None:
        _report(where, code, reasons)
    return code


def report_asked_for(arguments: Sequence[str]) -> str | None:
    """What follows --json among `arguments`, which may not have been parsed."""
    for index, word in enumerate(arguments):
        if word == "--json" and index + 1 < len(arguments):
            return arguments[index + 1]
        if word.startswith("--json="):
            return word.removeprefix("--json=")
    return None


def _report(where: str, code: int, reasons: Sequence[Reason]) -> None:
    from qconvert.facts import write_report

    told: dict[str, Any] = {
        "error": KINDS[code],
        "exit_code": code,
        "reasons": [{"problem": one.problem, "remedy": one.remedy} for one in reasons],
    }
    try:
        write_report(told, where)
    except Refused as refused:
        click.echo(f"  {refused}", err=True)


def terminate(*_: object) -> None:
    """Signal handler: leave through the context managers, so that they clean up."""
    sys.exit(TERMINATED)
