"""Embedding and head: measured by what they are for, solved in rows, the same after any stop."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.engine import ahead, ends
from qconvert.engine.bundle import Bundle, open_bundle
from qconvert.engine.ends import Roles
from qconvert.engine.metric import LOOKUP, PLAIN, both, lookup
from qconvert.engine.observe import Pair, held_rows
from qconvert.engine.reading import read_block
from qconvert.formats.integer import IntegerGrid
from qconvert.formats.known_grids import grid_named
from qconvert.formats.target import OutputTensor, Plan
from qconvert.models import FAMILIES
from qconvert.pipeline import Conversion, convert
from qconvert.runtimes import reference

Tiny = Callable[..., Path]
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
CPU = torch.device("cpu")


class Stop(Exception):
    pass


class Case:
    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.work, self.out = folder / "work", folder / "out.gguf"
        self.text = folder / "text.txt"
        self.text.write_text(Path(argparse.__file__).read_text("utf-8")[:20_000], "utf-8")
        self.heard: list[str] = []

    def run(
        self, until: str = "", *, threads: int = 1, kind: str = "Q4_0", **changed: Any
    ) -> Conversion:
        """Convert; until something is at hand, if that is given."""

        def told(what: str, *_: Any) -> None:
            self.heard.append(what)
            if what == until:
                raise Stop

        usual = {"method": "best", "calib": str(self.text), "calib_rows": 10, "calib_length": 32}
        asked = Asked(**{**usual, **changed}, work=self.work, keep_work=True, compute="float32")
        return convert(
            self.model, type=kind, out=self.out, threads=threads, force=True, asked=asked,
            blocks=told,
        )  # fmt: skip

    def sha256(self) -> str:
        return hashlib.sha256(self.out.read_bytes()).hexdigest()


@pytest.fixture(params=["tied", "untied"])
def case(request: pytest.FixtureRequest, tiny_model: Tiny, tmp_path: Path) -> Case:
    return Case(model_of(tiny_model, request.param), tmp_path)


def model_of(tiny_model: Tiny, kind: str) -> Path:
    return tiny_model("llama", dtype="bfloat16", tie_word_embeddings=kind == "tied", **SMALL)


@pytest.fixture(scope="module")
def unbroken(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Model -> the sha256 of a conversion that nothing happened to."""
    found = {}
    for kind in ("tied", "untied"):
        case = Case(model_of(tiny_model, kind), tmp_path_factory.mktemp(kind))
        case.run()
        found[case.model] = case.sha256()
    return found


# --- what is an embedding, and what a head


def outputs(model: Path, *grids: tuple[str, str]) -> Plan:
    """A plan of the ends alone: (role, bits or "")."""
    source = open_checkpoint(model)
    tensors = {one.role: one for one in source.tensors if one.part == "weight"}
    made = [
        OutputTensor(
            f"{place} {role}", tensors[role].shape, IntegerGrid(int(bits), 32) if bits else None,
            bits or "F32", 0, tensors[role],
        )
        for place, (role, bits) in enumerate(grids)
    ]  # fmt: skip
    return Plan("none", "none", tuple(made), "none")


def names(found: tuple[OutputTensor, ...]) -> list[str]:
    return [one.name for one in found]


def test_roles_of_the_ends(tiny_model: Tiny) -> None:
    tied, untied = (model_of(tiny_model, kind) for kind in ("tied", "untied"))

    def roles(model: Path, *grids: tuple[str, str]) -> Roles:
        return Roles.of(open_checkpoint(model), outputs(model, *grids))

    found = roles(untied, ("embedding", "4"), ("head", "4"))
    assert (names(found.lookups), names(found.heads), names(found.ties)) == (
        ["0 embedding"], ["1 head"], [],
    )  # fmt: skip
    assert names(found.behind) == ["1 head"]
    assert not found.ahead
    found = roles(tied, ("embedding", "4"))
    assert names(found.ties) == names(found.ahead) == names(found.optimised) == ["0 embedding"]
    found = roles(tied, ("embedding", "4"), ("embedding", "4"))  # stored twice, the same codes
    assert names(found.ties) == names(found.optimised) == ["0 embedding"]
    found = roles(tied, ("embedding", "4"), ("embedding", "8"))
    assert (names(found.lookups), names(found.ahead)) == (["0 embedding"], ["1 embedding"])
    assert not found.ties
    assert not found.behind
    found = roles(tied, ("embedding", ""), ("embedding", "8"))
    assert names(found.optimised) == names(found.ahead) == ["1 embedding"]
    assert found.table.name == "0 embedding"
    assert not roles(tied, ("embedding", "")).optimised
    assert names(roles(untied, ("embedding", "4"), ("head", "")).optimised) == ["0 embedding"]


# --- the metric


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "gpt2", "gpt_neox"])
def test_lookups_are_measured_by_the_linears_that_read_them(tiny_model: Tiny, family: str) -> None:
    """By definition: differences of what the first linears make of a row behind its norm, as it
    is for rows of a mean square of 1; LayerNorm takes the mean off."""
    source = open_checkpoint(tiny_model(family))
    block = read_block(source, 0, CPU)
    offset = FAMILIES[source.model_type].norm_offset
    d = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)).double()
    wanted = torch.zeros(5).double()
    total = 0.0
    for norm, roles in (
        ("attn_norm", ("attn_q", "attn_k", "attn_v", "attn_qkv")),
        ("ffn_norm", ("ffn_gate", "ffn_up", "ffn_gate_up")),
    ):
        centred = d - d.mean(1, keepdim=True) if block.bias(norm) is not None else d
        gains = block.weight(norm).double() + offset
        for role in roles:
            if block.has(role):
                w = block.weight(role).double() * gains
                wanted += ((centred @ w.t()) ** 2).sum(1)
                plain = w - w.mean(1, keepdim=True) if block.bias(norm) is not None else w
                total += float((plain**2).sum()) / 256
    found = ((d @ lookup(source, CPU).double()) * d).sum(1)
    assert torch.allclose(found, wanted / total + PLAIN * (d**2).sum(1), rtol=1e-4)


def test_both_in_one() -> None:
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(1))
    one, other = (side.t() @ side for side in x)
    seen = torch.diag(torch.arange(1.0, 9.0))
    found = both(Pair(one, other), seen)
    assert torch.allclose(found.fit, one / one.diagonal().mean() + LOOKUP * seen)
    assert torch.allclose(found.held, other / other.diagonal().mean() + LOOKUP * seen)
    nothing = both(Pair(torch.zeros(8, 8), torch.zeros(8, 8)), seen)
    assert torch.equal(nothing.fit, LOOKUP * seen)


def stored(bundle: Bundle, *, blocks: bool = True) -> dict[str, np.ndarray]:
    """The values of the work folder, or of the ends alone."""
    found = {}
    for one in bundle.tensors:
        if blocks or one.block is None:
            rows = bundle.rows(one, 0, one.shape[0] if len(one.shape) > 1 else 1)
            found[one.name] = np.ascontiguousarray(rows.T) if one.transposed else rows
    return found


def read_by_head(model: Any, tokens: np.ndarray) -> list[torch.Tensor]:
    """Of each row, [length, hidden]."""
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(args[0][0])
    )
    with torch.inference_mode():
        for row in tokens:
            model(torch.from_numpy(row.astype(np.int64))[None], use_cache=False)
    hook.remove()
    return seen


def second(rows: list[torch.Tensor]) -> torch.Tensor:
    x = torch.cat(rows).double()
    return x.t() @ x / len(x)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("method", ["gptq", "best"])
def test_the_error_told_is_that_of_the_model(
    tiny_model: Tiny, tmp_path: Path, family: str, method: str
) -> None:
    """On the held rows, with moments of what the head reads: of the model as it was stored, or of
    the model in float where the head is the embedding."""
    case = Case(tiny_model(family), tmp_path)
    done = case.run(method=method, calib_rows=40, calib_length=64)
    assert done.calibrated is not None
    bundle = open_bundle(case.work)
    told = {one.role: one for one in done.calibrated.outside}
    source = open_checkpoint(case.model)
    weights = stored(bundle)
    if bundle.tied:
        weights = {}
        for one in source.tensors:
            rows = source.rows(one, 0, one.shape[0] if len(one.shape) > 1 else 1)
            weights[one.name] = np.ascontiguousarray(rows.T) if one.transposed else rows
    model = reference.from_weights(source, weights, threads=1).model
    tokens = np.load(case.work / "tokens.npy")
    held = held_rows(len(tokens))
    seen = read_by_head(model, tokens)
    metric = second([one for at, one in enumerate(seen) if at in held])
    if bundle.tied:
        metric = both(Pair(metric, metric), lookup(source, CPU).double()).fit
    role = "embedding" if bundle.tied else "head"
    tensor = next(one for one in source.tensors if one.role == role and one.part == "weight")
    w = torch.from_numpy(source.rows(tensor, 0, tensor.shape[0])).double()
    off = w - torch.from_numpy(bundle.rows(tensor, 0, tensor.shape[0])).double()

    def error(d: torch.Tensor) -> float:
        return float(((d @ metric) * d).sum() / ((w @ metric) * w).sum())

    assert told[role].error == pytest.approx(error(off), rel=2e-3)
    grid = grid_named(told[role].grid)
    free = w - torch.from_numpy(grid.decode(grid.quantize(w.float().numpy()))).double()
    assert told[role].error < 0.92 * error(free)
    assert told[role].error < 0.92 * told[role].plain_error
    assert told[role].steps[:2] == ("weighted", "gptq")


def test_an_embedding_of_its_own_gets_better(tiny_model: Tiny, tmp_path: Path) -> None:
    case = Case(tiny_model("llama"), tmp_path)
    done = case.run()
    assert done.calibrated is not None
    told = next(one for one in done.calibrated.outside if one.role == "embedding")
    assert told.error < 0.95 * told.plain_error  # all channels of a random model are alike
    source, bundle = open_checkpoint(case.model), open_bundle(case.work)
    tensor = next(one for one in source.tensors if one.role == "embedding")
    w = torch.from_numpy(source.rows(tensor, 0, tensor.shape[0]))
    metric = lookup(source, CPU)
    off = w - torch.from_numpy(bundle.rows(tensor, 0, tensor.shape[0]))
    error = float(((off @ metric) * off).sum() / ((w @ metric) * w).sum())
    assert told.error == pytest.approx(error, rel=1e-3)


# --- the same bytes


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter(case: Case, unbroken: dict[Path, str], threads: int) -> None:
    case.run(threads=threads)
    assert case.sha256() == unbroken[case.model]


@pytest.mark.parametrize("count", [128, 256])
def test_rows_at_once_do_not_matter(
    case: Case, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """To feedback alone; a guard judges the rows that are solved together."""
    case.run(method="gptq")
    whole = case.sha256()
    monkeypatch.setattr(ends, "ROWS", count)
    case.heard.clear()
    case.run(method="gptq", resume=False)
    assert case.sha256() == whole
    assert case.heard.count("embedding: optimising") == 512 // count


STOPS = {
    "tied": ["embedding: block 0", "embedding: block 2", "embedding: optimising",
             "block 2: passing on", "block 2: done"],
    "untied": ["embedding: optimising", "block 2: passing on", "block 2: done", "head: reading",
               "head: optimising"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "stage"), [(kind, stage) for kind, stages in STOPS.items() for stage in stages]
)
def test_stopped_anywhere_and_resumed(
    tiny_model: Tiny, tmp_path: Path, unbroken: dict[Path, str], kind: str, stage: str
) -> None:
    case = Case(model_of(tiny_model, kind), tmp_path)
    with pytest.raises(Stop):
        case.run(stage)
    finished = {path.name for path in case.work.glob("*/*.safetensors")}
    case.heard.clear()
    done = case.run(threads=2, resume=True)
    assert case.sha256() == unbroken[case.model]
    assert not [*(case.work / "rows").iterdir()]
    if stage == "embedding: block 2":
        assert "embedding: block 1" not in case.heard
        assert "embedding: block 2" in case.heard
    if stage.startswith("head"):
        assert finished == {"before.safetensors", *(f"{n:05d}.safetensors" for n in range(3))}
        assert not [one for one in case.heard if one.startswith("block")]
    assert done.calibrated is not None
    assert {one.role for one in done.calibrated.outside} == (
        {"embedding"} if kind == "tied" else {"embedding", "head"}
    )


@pytest.mark.parametrize("part", ["before", "after"])
def test_a_part_that_was_deleted_is_made_again(
    case: Case, unbroken: dict[Path, str], part: str
) -> None:
    """With no block made anew; rows pass through those that are there where the head needs them."""
    case.run()
    (case.work / "outer" / f"{part}.safetensors").unlink()
    case.heard.clear()
    case.run()
    assert case.sha256() == unbroken[case.model]
    assert not [one for one in case.heard if one.endswith("calibrating")]
    passed = [one for one in case.heard if one.endswith("passing on")]
    assert len(passed) == (3 if part == "after" and not open_bundle(case.work).tied else 0)


def test_what_is_told_may_be_lost(case: Case) -> None:
    case.run()
    for path in case.work.glob("outer/*.json"):
        path.write_text("{", "utf-8")
    done = case.run()
    assert done.calibrated is not None
    assert done.calibrated.outside == ()


def test_rows_that_go_ahead() -> None:
    """All of them, or every n-th of those to fit to and of those held out."""
    chosen, held = ahead.some_rows(np.zeros((16, 512), np.int32))
    assert chosen == [*range(16)]
    assert held == {7, 15}
    chosen, held = ahead.some_rows(np.zeros((64, 512), np.int32))
    assert len(chosen) == 32
    assert {chosen[at] for at in held} == {7, 23, 39, 55}
    assert not {*held_rows(64)} & {one for at, one in enumerate(chosen) if at not in held}
    chosen, held = ahead.some_rows(np.zeros((1, 99999), np.int32))
    assert (chosen, held) == ([0], {0})
