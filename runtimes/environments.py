"""An environment of its own for each runtime: where it lies, what state it is in, how it is built.

Runtimes rarely share an interpreter with torch and with each other. `QCONVERT_RUNTIMES`, or
`qconvert/runtimes` in the user's cache, has a folder for each: a virtual environment, built in
place, and a marker that is written last. Without the marker a folder is half made, and is built
from nothing again; a marker of other pins makes it outdated. NAME.log beside it holds all that the
commands printed.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, Literal

from qconvert.formats.refusal import MissingRuntime, Reason, raise_if_any
from qconvert.runtimes import machine

VARIABLE = "QCONVERT_RUNTIMES"
MARKER = "qconvert.json"
TAIL_LINES = 12
PRIVATE = (
    "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PIP_TARGET", "PIP_PREFIX", "PIP_USER",
    "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV",
)  # fmt: skip
"""Variables of the caller's that would pin or place packages otherwise than the recipe says."""

State = Literal["absent", "unfinished", "outdated", "ready"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a runtime's environment is made. Same recipe, same packages."""

    name: str  # of the runtime
    commands: tuple[tuple[str, ...], ...]  # arguments of the environment's own pip, in order
    package: str  # the distribution whose version is the runtime's
    nbytes: int  # disk that the finished environment and its building take
    pins: str = ""  # a file of data/: every package that may be installed, as pip's constraints
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the commands; what the user has in one of these is put behind."""
    systems: tuple[str, ...] = ()  # "Linux x86_64", ...; empty: any
    newest_python: tuple[int, int] = (3, 14)
    oldest_python: tuple[int, int] = (3, 11)
    needs_gpu: bool = False  # an NVIDIA GPU, without which it computes nothing
    about: str = ""  # what to expect, one line

    @property
    def fingerprint(self) -> str:
        """Changes whenever an environment must be built again."""
        told = [self.commands, self.package, dict(self.environment), _pins(self.pins)]
        return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a build, with the variables that it adds to the user's own."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])


@dataclass(frozen=True, slots=True)
class Environment:
    """The place of one runtime's environment. Nothing is cached: each question looks."""

    folder: Path

    @property
    def python(self) -> Path:
        windows = os.name == "nt"
        return self.folder / ("Scripts/python.exe" if windows else "bin/python")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def marker(self) -> Mapping[str, Any]:
        """What the finished build left; empty when it did not finish."""
        try:
            found = json.loads((self.folder / MARKER).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def state(self, recipes: Sequence[Recipe]) -> State:
        """Ready when it was built by any of `recipes`, which serve different machines."""
        if not self.folder.exists():
            return "absent"
        told = self.marker()
        if not told or not self.python.exists():  # as when the Python below it was removed
            return "unfinished"
        known = {recipe.fingerprint for recipe in recipes}
        return "ready" if told.get("recipe") in known else "outdated"

    def lack(self, recipes: Sequence[Recipe]) -> str | None:
        """None when it is ready, else why not, in one line."""
        match self.state(recipes):
            case "ready":
                return None
            case "absent":
                return "not installed"
            case "unfinished":
                return f"its installation in {self.folder} did not finish"
            case "outdated":
                return f"the installation in {self.folder} has other versions than this qconvert"

    def remove(self) -> bool:
        """Take it away with its log; False when there was none."""
        existed = self.folder.exists()
        (self.folder / MARKER).unlink(missing_ok=True)  # first: what is left of it is not whole
        if existed:
            shutil.rmtree(self.folder)
        self.log.unlink(missing_ok=True)
        return existed


def root() -> Path:
    """The folder of all environments."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "qconvert" / "runtimes"


def environment(name: str) -> Environment:
    return Environment(root() / name)


def install_line(name: str) -> str:
    return f"qconvert runtimes install {name}"


def commands(recipe: Recipe, place: Environment) -> tuple[Command, ...]:
    """What `build` runs, in order."""
    pip = (str(place.python), "-m", "pip", "--disable-pip-version-check")
    variables = {
        name: f"{value} {os.environ.get(name, '')}".strip()
        for name, value in recipe.environment.items()
    }
    if recipe.pins:
        pinned = (place.folder / recipe.pins).as_uri()  # pip splits the variable at spaces
        variables["PIP_CONSTRAINT"] = variables["PIP_BUILD_CONSTRAINT"] = pinned
    made = Command((sys.executable, "-m", "venv", str(place.folder)))
    return made, *(Command((*pip, *arguments), variables) for arguments in recipe.commands)


def refuse_impossible(recipe: Recipe, place: Environment) -> None:
    """`Refused` when this machine cannot hold it: Python, processor, disk."""
    reasons = []
    python = sys.version_info[:2]
    if not recipe.oldest_python <= python <= recipe.newest_python:
        oldest, newest = (
            ".".join(map(str, one)) for one in (recipe.oldest_python, recipe.newest_python)
        )
        reasons.append(
            Reason(
                f"{recipe.name} has no packages for Python {python[0]}.{python[1]}",
                f"run qconvert with Python {oldest} to {newest}",
            )
        )
    if recipe.needs_gpu and not machine.nvidia_gpu():
        reasons.append(
            Reason(
                f"{recipe.name} computes on NVIDIA GPUs alone, and none is at hand",
                "install it on a machine whose nvidia-smi lists one",
            )
        )
    system = f"{platform.system()} {platform.machine()}"
    if recipe.systems and system not in recipe.systems:
        known = ", ".join(recipe.systems)
        reasons.append(Reason(f"{recipe.name} has no packages for {system}", f"it has for {known}"))
    there = next(folder for folder in (place.folder, *place.folder.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < recipe.nbytes:
        reasons.append(
            Reason(
                f"{recipe.name} takes {recipe.nbytes / 1e9:.1f} GB, and {there} has"
                f" {free / 1e9:.1f} GB left",
                f"set {VARIABLE} to a folder on a larger disk",
            )
        )
    raise_if_any(reasons)


def build(recipe: Recipe, place: Environment, tell: Callable[[str], None]) -> None:
    """Build it from nothing; `tell` is given each command as it runs.

    `Refused` before anything is done, where it cannot work; `MissingRuntime` with the command and
    the last lines of its output, where one fails.
    """
    refuse_impossible(recipe, place)
    place.remove()
    place.folder.parent.mkdir(parents=True, exist_ok=True)
    ours = {name: value for name, value in os.environ.items() if name not in PRIVATE}
    ours.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    with place.log.open("w", encoding="utf-8", buffering=1) as log:
        for command in commands(recipe, place):
            tell(str(command))
            log.write(f"$ {command}\n")
            _run(command, ours, log, recipe, place)
            if recipe.pins and not (place.folder / recipe.pins).exists():
                (place.folder / recipe.pins).write_text(_pins(recipe.pins), encoding="utf-8")
    told = {
        "recipe": recipe.fingerprint,
        "package": recipe.package,
        "version": _versions(place).get(recipe.package.lower().replace("_", "-"), ""),
        "python": platform.python_version(),
        "versions": _versions(place),
    }
    aside = place.folder / f"{MARKER}.new"
    aside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    aside.replace(place.folder / MARKER)


def _run(
    command: Command, ours: Mapping[str, str], log: IO[str], recipe: Recipe, place: Environment
) -> None:
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with subprocess.Popen(
        command.arguments,
        env={**ours, **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.write(line)
                tail.append(line.rstrip())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = "\n    ".join(line for line in tail if line.strip())
        raise MissingRuntime(
            recipe.name,
            f"a command of its installation failed (exit code {process.returncode}):\n"
            f"    {command}\n  the last lines it wrote:\n    {said}",
            f"see {place.log}; then {install_line(recipe.name)}",
        )


def _versions(place: Environment) -> dict[str, str]:
    """Every distribution of the environment -> its version."""
    program = (
        "import json; from importlib.metadata import distributions as d;"
        "print(json.dumps({x.metadata['Name'].lower().replace('_', '-'): x.version for x in d()}))"
    )
    done = subprocess.run(
        [str(place.python), "-P", "-c", program], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return dict(sorted(found.items()))


def _pins(name: str) -> str:
    return (files("qconvert.runtimes") / "data" / name).read_text("utf-8") if name else ""
