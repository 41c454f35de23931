"""Gates as data, and read from files: what is wrong is refused, all at once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qconvert.formats.amounts import parse_size, show_size
from qconvert.formats.refusal import Refused
from qconvert.runtimes.gate.figures import FIGURES
from qconvert.runtimes.gate.gates import BY_KEY, GATES, Gate, Gates, limit_of, read_gates

EXAMPLE = """
# what a release of this model must be
max_kl = 0.05
min-top1 = 0.9      # as the option is written
max_ppl_ratio = 1.03
min_speedup = 1.5
max_size = "100MB"
max_memory = 2000000000
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "gates.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_sets_gates(tmp_path: Path) -> None:
    assert read_gates(written(tmp_path, EXAMPLE)) == Gates(
        max_kl=0.05, min_top1=0.9, max_ppl_ratio=1.03, min_speedup=1.5, max_size=100e6,
        max_memory=2e9,
    )  # fmt: skip


def test_each_gate_is_a_field_and_has_a_figure() -> None:
    assert [field.name for field in dataclasses.fields(Gates)] == list(BY_KEY)
    assert set(FIGURES) == set(BY_KEY)
    assert all(gate.name.startswith("max-" if gate.most else "min-") for gate in GATES)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.name)
def test_each_sample_is_a_limit_that_makes_sense(gate: Gate, tmp_path: Path) -> None:
    found = read_gates(written(tmp_path, f"{gate.key} = {gate.unit.sample}"))
    assert list(found.asked()) == [(gate, limit_of(gate, gate.unit.sample.strip('"')))]


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = (
        'max_kll = 0.1\nmin_top1 = 90\nmax_kl = "0.1"\nmax_size = "big"\nmin_speedup = true\n'
        "max_ppl_ratio = nan\nmax_kl_p99 = -1\nmax_kl_p999 = inf\nmax_load_s = 0\n[gates]\nx = 1\n"
    )
    with pytest.raises(Refused) as refused:
        read_gates(written(tmp_path, text))
    told = str(refused.value)
    assert len(refused.value.reasons) == 10
    for piece in (
        "no gate 'max_kll'", "-> max_kl?", "min_top1 is 90, which is not a share from 0 to 1",
        "max_kl is '0.1'", "max_size is 'big'", "min_speedup is True", "max_ppl_ratio is nan",
        "max_kl_p99 is -1", "max_kl_p999 is inf", "max_load_s is 0", "[gates] is a table",
    ):  # fmt: skip
        assert piece in told


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("max_kl = ", "not TOML"),
        ("", "sets no gate"),
        ("max_kl = 1\nmax-kl = 2", "set twice"),
        ("x = " + "[" * 5000, "not TOML"),
        ("max_size = 1" + "0" * 400, "which is not a size"),
        ("max_size = 1.5", "which is not a size"),
    ],
)
def test_files_that_are_refused(text: str, piece: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"gates\.toml") as refused:
        read_gates(written(tmp_path, text))
    assert piece in str(refused.value)


def test_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(Refused, match="cannot read the gates"):
            read_gates(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_gates_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gates.toml"
    path.write_bytes(content)
    try:
        assert list(read_gates(path).asked())
    except Refused:
        pass


def test_flags_go_before_the_file() -> None:
    flags, file = Gates(max_kl=0.1, max_size=5.0), Gates(max_kl=0.2, min_top1=0.9)
    assert flags.over(file) == Gates(max_kl=0.1, max_size=5.0, min_top1=0.9)


def test_what_gates_need() -> None:
    gates = Gates(min_speedup=1.5, max_size=100.0)
    assert gates.need("beside")
    assert gates.need("file")
    assert not gates.need("text")
    assert not gates.need("speed")


def test_limits_as_they_are_typed() -> None:
    assert limit_of(BY_KEY["max_size"], "1.5GiB") == 1.5 * 2**30
    assert limit_of(BY_KEY["max_size"], "0.5GB") == 5e8
    assert limit_of(BY_KEY["max_kl"], "0") == 0
    for key, text in (("max_kl", "x"), ("max_size", "12 parsecs"), ("min_top1", "1.1")):
        with pytest.raises(ValueError, match=rf"^{key} is '"):
            limit_of(BY_KEY[key], text)


@given(st.integers(min_value=1, max_value=10**15))
def test_a_size_that_is_shown_can_be_read_again(nbytes: int) -> None:
    assert parse_size(show_size(nbytes).replace(",", "")) == pytest.approx(nbytes, rel=1e-4)


def test_gates_import_nothing_heavy() -> None:
    code = (
        "import sys, qconvert.runtimes.gate.gates\n"
        "assert not {'numpy', 'torch', 'tokenizers', 'click'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd="/")
