"""The commands about runtimes: `qconvert runtimes`, and `install` and `remove` below it.

Part of the command line, which alone sees all rooms; everything heavy is imported by the command
that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.options import json_option

if TYPE_CHECKING:
    from qconvert.runtimes.environments import Recipe
    from qconvert.runtimes.installable import Installable
    from qconvert.runtimes.runtime import Runtime


@click.group("runtimes", invoke_without_command=True, short_help="Runtimes: usable here? Install.")
@json_option
@click.pass_context
def runtimes_group(context: click.Context, report: str | None) -> None:
    """List the runtimes with their versions, or the one-line reason why one is not usable here;
    and programs that load outputs, for `qconvert check`, and compute nothing.

    \b
      qconvert runtimes
      qconvert runtimes install vllm --dry-run
      qconvert runtimes install llamacpp vllm
      qconvert runtimes remove vllm

    Each is installed in an environment of its own, in QCONVERT_RUNTIMES or else in
    ~/.cache/qconvert/runtimes.
    """
    if context.invoked_subcommand is not None:
        return
    from qconvert.deliver import deliver
    from qconvert.runtimes.installable import installable

    computing: dict[str, Runtime | Installable] = {**known()}
    every = computing | {name: one for name, one in installable().items() if name not in computing}
    found = [facts(one) for one in every.values()]
    deliver({"runtimes": found}, report, table(found))


@runtimes_group.command("install", short_help="Build the environments of runtimes.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--dry-run", is_flag=True, help="Print the commands; run nothing.")
@click.option("--force", is_flag=True, help="Build again what is installed.")
def install_command(names: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Build an environment for each NAME, with pinned versions, and print every command.

    One that is installed is left as it is; one that was interrupted, or has other versions than
    this qconvert asks for, is built again from nothing.
    """
    from qconvert.runtimes import environments

    for name, recipes in [(name, recipes_of(name)) for name in names]:
        place, recipe = environments.environment(name), recipes[0]
        if not dry_run and not force and place.state(recipes) == "ready":
            click.echo(f"{name} is installed: {describe(place.marker())} in {place.folder}")
            continue
        if dry_run:
            for command in environments.commands(recipe, place):
                click.echo(str(command))
            continue
        click.echo(f"installing {name} in {place.folder} ({recipe.about})", err=True)
        environments.build(recipe, place, lambda line: click.echo(f"$ {line}"))
        click.echo(f"{name} is installed: {describe(place.marker())}")


@runtimes_group.command("remove", short_help="Remove the environment of a runtime.")
@click.argument("name")
def remove_command(name: str) -> None:
    """Delete the environment of NAME, and the log of its installation."""
    from qconvert.runtimes import environments

    recipes_of(name)
    place = environments.environment(name)
    removed = place.remove()
    click.echo(f"removed {place.folder}" if removed else f"{name} was not installed")


def known() -> dict[str, Runtime]:
    from qconvert.runtimes.runtime import runtimes

    return dict(sorted(runtimes().items()))


def recipes_of(name: str) -> tuple[Recipe, ...]:
    """How the environment of `name` is made, the way for this machine first."""
    from qconvert.runtimes.installable import installable

    having = installable()
    if name not in having:
        raise refuse(f"no runtime {name!r} to install", f"known: {', '.join(sorted(having))}")
    return having[name].recipes


def facts(runtime: Runtime | Installable) -> dict[str, Any]:
    """What is to be known of one: usable, in which version, where, or why not. One with several
    targets only loads their outputs."""
    from qconvert.runtimes.environments import environment

    recipes = getattr(runtime, "recipes", ())
    place = environment(runtime.name)
    own = bool(recipes) and place.state(recipes) == "ready"
    reason = runtime.unavailable()
    version = ""
    if reason is None:
        try:
            version = runtime.version()
        except MissingRuntime as missing:
            reason = missing.reason.partition("\n")[0]
    return {
        "name": runtime.name,
        "target": getattr(runtime, "target", "") or ", ".join(getattr(runtime, "targets", ())),
        "computes": hasattr(runtime, "target"),
        "usable": reason is None,
        "version": version or None,
        "environment": str(place.folder) if own else None,
        "reason": reason,
        "install": None if reason is None else runtime.install,
    }


def table(found: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=box.SIMPLE_HEAD)
    for title in ("runtime", "loads", "version", "environment"):
        rows.add_column(title)
    for one in found:
        where = one["environment"] or ("this interpreter" if one["usable"] else "-")
        what = one["version"] or f"{one['reason']}\n-> {one['install']}"
        rows.add_row(*(Text(cell) for cell in (one["name"], one["target"], what, where)))
    return rows


def describe(marker: Any) -> str:
    return f"{marker['package']} {marker['version']} (Python {marker['python']})"
