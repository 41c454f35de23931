"""The command line: exit codes, messages, what is left behind, and who is shown progress."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from qconvert import __version__, cli
from qconvert.checkpoint import Checkpoint
from qconvert.cli import run
from qconvert.formats.amounts import parse_size

Tiny = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are named after the current folder unless --out says otherwise."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)


def left() -> list[str]:
    """What lies in the current folder, hidden files included."""
    return sorted(str(path) for path in Path().rglob("*"))


def convert(model: Path, *more: str) -> int:
    """Weight by weight: quick, and no text is needed."""
    words = ["--to", "gguf", "--type", "Q8_0", "--method", "rtn", "--threads", "1"]
    return run([str(model), *words, *more])


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert run([]) == 0
    shown = capsys.readouterr().out
    for word in ("inspect", "check", "bench", "targets", "--to TARGET", "Exit codes", "Bits:"):
        assert word in shown


def test_converts_without_a_sub_command_calibrated(
    tiny_model: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("llama")
    capsys.readouterr()
    few = ["--calib-rows", "4", "--calib-length", "32"]
    assert run([str(model), "--to", "gguf", "--bits", "4", *few]) == 0
    (name,) = left()
    assert name.endswith("Q4_K_M.gguf")
    out, err = capsys.readouterr()
    assert name in out
    for part in ("bits per weight", "best (weighted, gptq, descent)", "default: 4 rows of 32"):
        assert part in out
    assert err == ""


def test_options_may_come_first(tiny_model: Tiny) -> None:
    model = str(tiny_model("llama"))
    words = ["--bits", "8", "--to", "gguf", "--method", "rtn", "--out"]
    assert run([*words, "a.gguf", model]) == 0
    assert run(["--debug", model, *words, "b.gguf"]) == 0
    assert left() == ["a.gguf", "b.gguf"]


def test_a_folder_called_as_a_command_is_within_reach(tiny_copy: Tiny) -> None:
    tiny_copy("llama").rename("check")
    assert convert(Path("./check").absolute(), "--out", "a.gguf") == 0
    assert (
        run(["./check", "--to", "gguf", "--bits", "8", "--method", "rtn", "--out", "b.gguf"]) == 0
    )
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "--to", "gguf", "--bits", "4"], "no such folder: nowhere"),
        (["nowhere"], "--to TARGET, one of: edge-llm, gguf"),
        (["nowhere", "--to", "floppy", "--bits", "4"], "floppy"),
        (["nowhere", "--to", "gguf", "--no-such"], "--no-such"),
        (["nowhere", "--to", "gguf", "--split-size", "big"], "not a size"),
        (["nowhere", "--to", "gguf", "--json", "no/such/report.json"], "no/such"),
        (["inspect", "nowhere"], "no such file or folder: nowhere"),
        (["check", "nowhere"], "--against"),
        (["bench", "nowhere"], "nowhere"),
    ],
)
def test_refusals(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.startswith("qconvert: refused")
    assert "Traceback" not in err
    assert left() == []


def test_seven_bits_are_refused_with_what_works(
    tiny_model: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([str(tiny_model("llama")), "--to", "gguf", "--bits", "7"]) == 2
    told = capsys.readouterr().err
    assert "7" in told
    assert "->" in told
    assert left() == []


def test_all_reasons_are_told_at_once(tiny_copy: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_copy("llama")
    (model / "config.json").unlink()
    (model / "model.safetensors").unlink()
    assert convert(model, "--json", "-") == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["error"] == "refused"
    assert told["exit_code"] == 2
    assert len(told["reasons"]) >= 2
    assert all(reason["problem"] in err for reason in told["reasons"])
    assert left() == []


def test_an_output_that_exists_is_kept(
    tiny_model: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.gguf").write_bytes(b"precious")
    assert convert(tiny_model("llama"), "--out", "a.gguf") == 2
    assert "--force" in capsys.readouterr().err
    assert Path("a.gguf").read_bytes() == b"precious"
    assert convert(tiny_model("llama"), "--out", "a.gguf", "--force") == 0
    assert Path("a.gguf").read_bytes()[:4] == b"GGUF"
    assert left() == ["a.gguf"]


def no_weights(*_: object) -> NoReturn:
    raise AssertionError("a weight was read")


def test_plan_reads_no_weight_and_writes_nothing(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Checkpoint, "rows", no_weights)
    assert run([str(tiny_model("llama")), "--to", "gguf", "--bits", "4", "--plan"]) == 0
    shown = capsys.readouterr().out
    for word in ("attn_v", "ffn_down", "Q4_K", "Q6_K", "memory", "disk", "time", "size"):
        assert word in shown
    assert left() == []


def test_plan_foretells_the_size(tiny_model: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("llama")
    assert convert(model, "--plan", "--json", "-") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["obstacles"] == []
    assert convert(model, "--json", "-") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["groups"] == plan["groups"]
    assert done["bits_per_weight"] == plan["bits_per_weight"]
    assert done["bytes"] == Path(done["files"][0]["path"]).stat().st_size
    assert abs(done["bytes"] - plan["bytes"]) < 0.02 * done["bytes"]
    assert convert(model, "--plan", "--json", "-") == 0
    assert "--force" in json.loads(capsys.readouterr().out)["obstacles"][0]["remedy"]


def test_json_goes_where_it_is_asked_for(
    tiny_model: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tiny_model("llama"), "--json", "report.json") == 0
    report = json.loads(Path("report.json").read_text())
    assert report["type"] == "Q8_0"
    assert report["peak_memory_bytes"] > 0
    assert "converted" in capsys.readouterr().out


def test_weights_that_are_not_finite_leave_nothing_behind(
    tiny_copy: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_copy("llama")
    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][3, 5] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert convert(model) == 2
    assert name in capsys.readouterr().err
    assert left() == []


def test_no_progress_is_shown_to_a_pipe(tiny_model: Tiny) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "qconvert", str(tiny_model("llama")), "--to", "gguf",
         "--bits", "8", "--method", "rtn"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def test_an_interrupt_is_tidy(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Checkpoint, "rows", interrupted)
    assert convert(tiny_model("llama")) == 130
    assert "interrupted" in capsys.readouterr().err
    assert left() == []


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_handlers")
def test_a_request_to_end_is_tidy(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_to_end(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoint, "rows", asked_to_end)
    words = [str(tiny_model("llama")), "--to", "gguf", "--method", "rtn"]
    monkeypatch.setattr(sys, "argv", ["qconvert", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 143
    assert left() == []


def faulty(*_: object) -> NoReturn:
    raise ZeroDivisionError("of all things")


def test_a_fault_of_ours_is_told_without_a_traceback(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Checkpoint, "rows", faulty)
    assert convert(tiny_model("llama")) == 70
    told = capsys.readouterr().err
    assert "of all things" in told
    assert "Traceback" not in told
    assert left() == []
    with pytest.raises(ZeroDivisionError):
        run(["--debug", str(tiny_model("llama")), "--to", "gguf", "--method", "rtn"])


def test_inspect_shows_a_model_and_a_file(
    tiny_model: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("llama")
    assert run(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    for word in ("llama", "attn_q", "model.layers.*.mlp.up_proj.weight", "hidden_size"):
        assert word in shown
    assert convert(model, "--out", "a.gguf") == 0
    capsys.readouterr()
    assert run(["inspect", "a.gguf", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "gguf"
    assert told["metadata"]["general.architecture"] == "llama"
    assert told["types"]["Q8_0"]["weights"] > told["types"]["F32"]["weights"]
    assert run(["inspect", "a.gguf", "--tensors"]) == 0
    assert "blk.1.ffn_down.weight" in capsys.readouterr().out


def test_inspect_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_text("not a model")
    assert run(["inspect", "a.txt"]) == 2
    assert "gguf" in capsys.readouterr().err


def test_targets_lists_types_and_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets"]) == 0
    shown = capsys.readouterr().out
    for word in ("--to gguf", "Q4_K_M", "IQ4_XS", "llama"):
        assert word in shown
    assert run(["targets", "--json", "-"]) == 0
    told: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    (gguf,) = [target for target in told if target["target"] == "gguf"]
    assert {"name", "usable", "reason", "install"} <= set(gguf["runtimes"][0])


@pytest.fixture
def small(tiny_model: Tiny) -> tuple[str, str]:
    """(model, its output), as text."""
    model = tiny_model("llama")
    assert convert(model, "--out", "small.gguf") == 0
    return str(model), "small.gguf"


def test_check_judges_by_exit_code(
    small: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = small
    little = ["--windows", "1", "--length", "48", "--threads", "1"]
    assert run(["check", out, "--against", model, *little, "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert found["verdict"] == "PASS"
    assert 0 < found["floor"]["kl_mean"] < found["total"]["kl_mean"]
    assert "PASS" in capsys.readouterr().out
    strict = [*little, "--no-floor", "--max-kl", str(found["total"]["kl_mean"] / 2)]
    assert run(["check", out, "--against", model, *strict]) == 1
    assert "max-kl" in capsys.readouterr().out
    assert left() == ["found.json", "small.gguf"]


def test_a_file_can_be_judged_without_its_runtime(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For targets whose runtime is not here: without the option, it is told of."""
    from qconvert.runtimes.tensorrt_llm import TensorRtLlm

    monkeypatch.setattr(TensorRtLlm, "unavailable", absent)
    model = str(tiny_model("llama", dtype="bfloat16"))
    words = ["--scheme", "w4a16-awq", "--method", "rtn", "--threads", "1", "--out", "out"]
    assert run([model, "--to", "trtllm", *words]) == 0
    checked = ["check", "out", "--against", model, "--windows", "1", "--length", "48"]
    assert run(checked) == 3
    assert "--no-runtime" in capsys.readouterr().err
    assert run([*checked, "--no-runtime", "--runtime", "vllm"]) == 2
    assert "contradict" in capsys.readouterr().err
    assert run([*checked, "--no-runtime", "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert (found["verdict"], found["runtime"], found["total"]) == ("PASS", None, None)
    assert found["quantization"]["kl_mean"] > 0
    assert {"trtllm-rules", "edge-llm"} <= {one["name"] for one in found["loaders"]}
    assert "no runtime was run" in capsys.readouterr().out
    strict = ["--no-runtime", "--max-kl", str(found["quantization"]["kl_mean"] / 2)]
    assert run([*checked, *strict]) == 1


def test_bench_tells_rates(small: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--prompt", "16", "--generate", "4", "--repetitions", "1", "--threads", "1"]
    capsys.readouterr()
    assert run(["bench", small[1], *few, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["throughput"]["prompt_tokens_per_s"] > 0
    assert told["throughput"]["generate_tokens"] == 4
    assert told["peak_bytes"] > 0


def absent(*_: object) -> str:
    return "its package is not installed"


def test_a_missing_runtime_is_told_with_the_line_that_installs_it(
    small: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qconvert.runtimes.llamacpp import RUNTIME, LlamaCpp

    model, out = small
    monkeypatch.setattr(LlamaCpp, "unavailable", absent)
    for arguments in (["check", out, "--against", model], ["bench", out]):
        assert run(arguments) == 3
        told = capsys.readouterr().err
        assert "its package is not installed" in told
        assert RUNTIME.install in told
    assert run(["targets"]) == 0
    assert "its package is not installed" in capsys.readouterr().out
    assert left() == ["small.gguf"]


def test_a_runtime_that_crashes_is_a_broken_environment(
    small: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qconvert.runtimes.llamacpp import LlamaCpp
    from qconvert.runtimes.process import RuntimeFailed

    def crashed(*_: object, **__: object) -> NoReturn:
        raise RuntimeFailed("llama.cpp", "crashed (SIGSEGV)", "its last words")

    monkeypatch.setattr(LlamaCpp, "open", crashed)
    assert run(["bench", small[1]]) == 3
    assert "its last words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--runtime", "abacus"], 2, "llamacpp"),
        (["--runtime-path", "nowhere"], 2, "no such folder"),
        (["--llama-cpp", "."], 3, "folder that holds the shared libraries"),
    ],
)
def test_a_runtime_is_chosen_by_name_and_build(
    small: tuple[str, str],
    more: list[str],
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["bench", small[1], *more]) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("2GB", 2 * 10**9), ("500mb", 5 * 10**8), ("1.5 GiB", 3 << 29), ("4096", 4096)],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1XB", "1e9", "2 G B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)
