"""The rules of the house, as far as a test can hold them (docs/architecture.md says why)."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import qconvert
from qconvert.cli import cli

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUP = PROJECT["tool"]["setuptools"]
ROOMS = {"converter": "qconvert", "formats": "qconvert.formats", "runtimes": "qconvert.runtimes",
         "kernels": "qconvert.kernels"}  # fmt: skip
MAY_IMPORT = {
    "converter": {"converter", "formats", "kernels"},
    "formats": {"formats", "kernels"},
    "runtimes": {"runtimes", "formats", "kernels"},
    "kernels": {"kernels"},
}
SEES_ALL = {
    f"converter/{name}.py"
    for name in (
        "cli",
        "check_commands",
        "check_options",
        "proof",
        "record",
        "running",
        "runtime_commands",
    )
}
HEAVY = ("gguf", "jinja2", "llama_cpp", "matplotlib", "numba", "numpy", "rich", "safetensors",
         "tokenizers", "torch", "transformers")  # fmt: skip


def sources(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    """(path below the root, syntax tree) of every module of `rooms`."""
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports anywhere, `from a import b` as both `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """The room of a dotted import name of ours; None for what is not ours."""
    if module.split(".")[0] != "qconvert":
        return None
    second = [*module.split("."), ""][1]
    return second if second in ROOMS else "converter"


def forbidden_imports(path: str, tree: ast.Module) -> set[str]:
    allowed = MAY_IMPORT[path.split("/")[0]]
    ours = {module for module in imported(tree) if module != "qconvert"}
    return {module for module in ours if (room_of(module) or path.split("/")[0]) not in allowed}


def test_every_package_folder_is_listed() -> None:
    on_disk = {
        ".".join((package, *init.parent.relative_to(ROOT / top).parts))
        for package, top in SETUP["package-dir"].items()
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert on_disk == set(SETUP["packages"])


def test_every_folder_with_modules_is_a_package() -> None:
    bare = [
        str(path.parent.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    ]
    assert bare == []


def test_every_data_file_ships() -> None:
    patterns = SETUP["package-data"]["*"]
    packages = {init.parent for room in ROOMS for init in (ROOT / room).rglob("__init__.py")}
    listed = {path for package in packages for one in patterns for path in package.glob(one)}
    here = {
        path
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert here - listed == set()


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_is_importable_by_its_folder_name(room: str) -> None:
    spec = importlib.util.find_spec(room)
    places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]
    assert not [place for place in places if Path(place).resolve().is_relative_to(ROOT / room)]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_rule(room: str) -> None:
    broken = {
        path: sorted(bad)
        for path, tree in sources(room)
        if path not in SEES_ALL and (bad := forbidden_imports(path, tree))
    }
    assert broken == {}


def test_the_import_rule_finds_a_breach() -> None:
    tree = ast.parse("def f():\n    from qconvert import runtimes")
    assert forbidden_imports("formats/x.py", tree) == {"qconvert.runtimes"}
    tree = ast.parse("from qconvert.pipeline import convert")
    assert forbidden_imports("runtimes/x.py", tree)
    assert not forbidden_imports("converter/x.py", tree)


def test_init_files_import_nothing() -> None:
    loud = [p for p, tree in sources(*ROOMS) if p.endswith("__init__.py") and [*imported(tree)]]
    assert loud == []


def decided_by_name(tree: ast.Module, name: str) -> list[int]:
    """Lines that compare something called `name` with a literal, or match on it."""

    def is_called(node: ast.expr) -> bool:
        return (isinstance(node, ast.Name) and node.id == name) or (
            isinstance(node, ast.Attribute) and node.attr == name
        )

    def is_literal(node: ast.expr) -> bool:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return all(is_literal(element) for element in node.elts)
        return isinstance(node, ast.Constant) and isinstance(node.value, str | int)

    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(map(is_called, sides)) and any(map(is_literal, sides)):
                lines.append(node.lineno)
        elif isinstance(node, ast.Match) and is_called(node.subject):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("name", "rooms"),
    [
        ("target", ("converter", "runtimes", "kernels")),
        ("method", ("converter", "formats", "runtimes", "kernels")),
        ("bits", ("converter", "runtimes", "kernels")),
    ],
)
def test_no_ladder_over_names(name: str, rooms: tuple[str, ...]) -> None:
    ladders = {
        path: lines
        for path, tree in sources(*rooms)
        if not path.startswith("converter/algorithms/") or name != "method"
        if (lines := decided_by_name(tree, name))
    }
    assert ladders == {}


def test_the_ladder_rule_finds_a_ladder() -> None:
    tree = ast.parse('if request.target == "x":\n    pass\nelif target in ("y", "z"):\n    pass')
    assert decided_by_name(tree, "target") == [1, 3]
    assert decided_by_name(ast.parse("if bits is None or bits > top: pass"), "bits") == []


def test_the_converter_names_no_target() -> None:
    """A new format is a new file: nothing in converter/ spells the name of one but as a default."""
    from qconvert.formats.target import targets

    names = set(targets())
    assert names
    for path, tree in sources("converter"):
        defaults = {
            id(default)
            for node in ast.walk(tree)
            if isinstance(node, ast.arguments)
            for default in (*node.defaults, *node.kw_defaults)
        }
        spelt = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and id(node) not in defaults
        }
        assert not spelt & names, path


def test_nothing_that_varies_reaches_an_output() -> None:
    """Same input, same bytes: writers and kernels know no clock, host or chance."""
    varying = {"time", "datetime", "socket", "getpass", "uuid", "random", "secrets"}
    found = {
        path: bad
        for path, tree in sources("formats", "kernels")
        if (bad := varying & {module.split(".")[0] for module in imported(tree)})
    }
    assert found == {}


def test_no_code_is_run_from_a_checkpoint() -> None:
    unsafe = {"pickle", "cloudpickle", "dill", "joblib"}
    for path, tree in sources(*ROOMS):
        assert not unsafe & {module.split(".")[0] for module in imported(tree)}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), path


def test_library_code_does_not_print() -> None:
    printing = {
        f"{path}:{node.lineno}"
        for path, tree in sources(*ROOMS)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "print"
    }
    assert printing == set()


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["check", "--help"], ["convert", "--help"], ["runtimes", "--help"]],
)
def test_start_up_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom qconvert.cli import run\n"
        f"assert run({args!r}) == 0\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stderr.strip() == "[]"


def test_version_has_one_source() -> None:
    assert importlib.metadata.version("qconvert") == qconvert.__version__
    assert "version" in PROJECT["project"]["dynamic"]


def test_pins_cover_the_requirements() -> None:
    """Everything that pyproject.toml asks for is pinned exactly."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    groups = PROJECT["project"]["optional-dependencies"].values()
    asked = [*PROJECT["project"]["dependencies"], *(one for group in groups for one in group)]
    names = {re.split(r"[\[<>=!~ ;]", one)[0].lower().replace("_", "-") for one in asked}
    assert names - pinned == set()


def tracked() -> list[Path]:
    """Text files of the project; from git where it knows them, else everything that ships."""
    git = shutil.which("git")
    listed = subprocess.run(
        [git or "false", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    if not any(names):
        kept = (*ROOMS, "tests", "docs", "examples", "benchmarks")
        names = [str(p.relative_to(ROOT)) for room in kept for p in (ROOT / room).rglob("*")]
        names += ["README.md", "Makefile", "pyproject.toml", "constraints.txt", ".ci/run"]
    paths = [ROOT / name for name in names if name]
    return [path for path in paths if path.is_file() and "__pycache__" not in path.parts]


def test_no_place_of_one_machine_is_named() -> None:
    place = re.compile(
        rb"(?<![\w.~$}-])/(?:home|root|Users|work|mnt|opt|tmp)/[\w.]"
        rb"|--(?:extra-)?index"
        rb"-url|--find"
        rb"-links|://[^\s\"')]+/simple\b"
    )
    found = {
        f"{path.relative_to(ROOT)}: {hit.group().decode()}"
        for path in tracked()
        if (hit := place.search(path.read_bytes()))
    }
    assert found == set()


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every `qconvert` and `make` command in a fenced block of the documents."""
    import shlex

    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        fenced = re.findall(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
        for line in "".join(fenced).replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ")
            if command.split(" ")[0] in ("qconvert", "make"):
                yield page.name, shlex.split(command, comments=True)


def parse(words: list[str]) -> None:
    """Parse a command line as the program would, running nothing."""
    with cli.make_context("qconvert", list(words)) as context:
        rest = [*context._protected_args, *context.args]
        if rest:
            name, command, rest = cli.resolve_command(context, rest)
            assert command is not None
            command.make_context(name, rest, parent=context)


def test_documented_commands_exist() -> None:
    goals = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    commands = list(documented_commands())
    assert [words for _, words in commands if words[0] == "qconvert"]
    for page, words in commands:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= goals, (page, words)
        else:
            parse(words[1:])


def test_an_undocumented_option_is_found() -> None:
    with pytest.raises(click.UsageError):
        parse(["model", "--to", "x", "--no-such-option"])
