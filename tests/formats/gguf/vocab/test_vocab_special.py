"""Begin, end and stop tokens; contradictions; the chat template; the real model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qconvert.formats.gguf.chat import without_generation
from qconvert.formats.gguf.vocab import read_vocabulary
from qconvert.formats.refusal import Refused

ROOT = Path(__file__).parents[4]
REAL = ROOT / "models" / "smollm2-135m"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi!\n\nHow are you? <|im_end|> é 日本 "},
    {"role": "assistant", "content": "Fine."},
    {"role": "user", "content": "Good"},
]


def _template(before: list[int], after: list[int], texts: Mapping[int, str]) -> dict[str, Any]:
    special = {texts[id]: {"id": texts[id], "ids": [id], "tokens": [texts[id]]} for id in texts}

    def pieces(ids: list[int]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": texts[id], "type_id": 0}} for id in ids]

    text = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    single = [*pieces(before), text, *pieces(after)]
    return {
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special
    }  # fmt: skip


class Case:
    """One small tokenizer with three special tokens: end of text, start and end of a turn."""

    def __init__(self, make: SimpleNamespace, folder: Path) -> None:
        model, steps = make.trained("gpt2"), ("gpt2",)
        self.size = len(model["vocab"])
        self.end, self.start, self.turn = range(self.size, self.size + 3)
        self.texts = dict(
            zip((self.end, self.start, self.turn), ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
                strict=True)
        )  # fmt: skip
        self.definition = make.definition(model, make.pre_tokenizer(steps))
        self.folder = folder

    def read(
        self, settings: Any = None, config: Any = None, generation: Any = None, **parts: Any
    ) -> Any:
        files = {
            "tokenizer.json": {**self.definition, **parts},
            "tokenizer_config.json": settings or {},
            "generation_config.json": generation or {},
        }
        for name, content in files.items():
            (self.folder / name).write_text(json.dumps(content), encoding="utf-8")
        vocabulary = read_vocabulary(self.folder, config or {})
        prefix = "tokenizer.ggml."
        return SimpleNamespace(
            vocabulary=vocabulary,
            **{e.key.removeprefix(prefix): e.value for e in vocabulary.entries
               if e.key.startswith(prefix)},
        )  # fmt: skip

    def refused(self, words: str, *args: Any, **parts: Any) -> None:
        with pytest.raises(Refused) as refused:
            self.read(*args, **parts)
        assert words in str(refused.value)


@pytest.fixture
def case(make: SimpleNamespace, tmp_path: Path) -> Case:
    return Case(make, tmp_path)


def test_the_tokenizer_names_its_tokens_first(case: Case) -> None:
    found = case.read(
        {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"},
        {"bos_token_id": 0, "eos_token_id": case.end, "pad_token_id": case.end},
    )
    assert (found.bos_token_id, found.eos_token_id) == (case.start, case.turn)
    assert (found.padding_token_id, found.eot_token_id) == (case.end, case.turn)
    assert (found.add_bos_token, found.add_eos_token) == (False, False)


def test_lists_of_end_tokens(case: Case, builder: Any) -> None:
    """The first is the end token, the others stop generation all the same."""
    found = case.read({}, {"eos_token_id": 1}, {"eos_token_id": [case.end, case.turn, 7, 9]})
    assert found.eos_token_id == case.end
    assert (found.eot_token_id, found.eom_token_id) == (7, 9)
    llama = builder.open(found.vocabulary)
    assert all(llama.stops_at(id) for id in (case.end, case.turn, 7, 9))
    assert not llama.stops_at(1)
    many = case.read({}, {}, {"eos_token_id": [case.end, 7, 8, 9]})
    assert any("will not stop" in note for note in many.vocabulary.notes)


def test_without_a_begin_token_none_is_invented(case: Case, builder: Any) -> None:
    found = case.read({"add_bos_token": True}, {"eos_token_id": case.turn})
    assert (found.bos_token_id, found.add_bos_token) == (case.turn, False)
    assert builder.open(found.vocabulary).encode("a", add=True) == [
        case.definition["model"]["vocab"]["a"]
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_tokens_added_by_the_post_processor(case: Case, builder: Any, nested: bool) -> None:
    processor = _template([case.start], [case.end], case.texts)
    if nested:
        processor = {"type": "Sequence", "processors": [BYTE_LEVEL, processor]}
    case.read({}, {"eos_token_id": case.end}, post_processor=processor)
    vocabulary, found, _ = builder.differences(
        case.folder, {"eos_token_id": case.end}, ["", "a", "Hi there", " x\n"], add=True
    )
    assert not found
    assert vocabulary["tokenizer.ggml.bos_token_id"] == case.start
    assert vocabulary["tokenizer.ggml.add_eos_token"] is True


def test_outright_settings_win_over_the_post_processor(case: Case) -> None:
    """As in transformers, which then makes the post_processor anew from both flags."""
    processor = _template([case.start], [], case.texts)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    kept = case.read(names, post_processor=processor)
    cleared = case.read({**names, "add_bos_token": False}, post_processor=processor)
    ended = case.read({**names, "add_eos_token": True}, post_processor=processor)
    assert (kept.add_bos_token, kept.add_eos_token) == (True, False)
    assert (cleared.add_bos_token, cleared.add_eos_token) == (False, False)
    assert (ended.add_bos_token, ended.add_eos_token) == (False, True)


def test_contradictions_are_refused(case: Case, make: SimpleNamespace) -> None:
    eos = {"eos_token": "<|im_end|>"}
    tokens = case.definition["added_tokens"]
    case.refused("no end token", {}, {})
    case.refused("not in the vocabulary", {"eos_token": "<nope>"})
    case.refused("outside the vocabulary", eos, {"bos_token_id": 99999})
    case.refused("outside the vocabulary", eos, {}, {"eos_token_id": [case.end, 99999]})
    case.refused(f"vocab_size {case.size}", eos, {"vocab_size": case.size})
    two = _template([case.start, case.end], [], case.texts)
    case.refused("llama.cpp can put one", eos, post_processor=two)
    other = _template([case.end], [], case.texts)
    case.refused("post_processor", {**eos, "bos_token": "<|im_start|>"}, post_processor=other)
    gap = [*tokens, make.added(case.size + 9, "<far>")]
    case.refused("consecutive", eos, added_tokens=gap)
    twice = {**eos, "added_tokens_decoder": {"5": make.added(5, "<late>")}}
    case.refused("belongs to two tokens", twice)
    case.refused("'does not parse'"[1:-1], {**eos, "chat_template": "{% for x in y %}"})


def test_all_reasons_come_at_once(case: Case, make: SimpleNamespace) -> None:
    model = {**case.definition["model"], "end_of_word_suffix": "</w>"}
    bad = [make.added(case.size, "<x>", lstrip=True)]
    with pytest.raises(Refused) as refused:
        case.read({}, {"vocab_size": 3}, model=model, added_tokens=bad)
    assert len(refused.value.reasons) == 3


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_other_models_are_refused(kind: str, tmp_path: Path) -> None:
    vocabulary: Any = [["<unk>", 0.0]] if kind == "Unigram" else {"<unk>": 0}
    model = {"type": kind, "vocab": vocabulary, "unk_token": "<unk>", "unk_id": 0}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    whole = {"version": "1.0", "added_tokens": [], "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(Refused, match=kind):
        read_vocabulary(tmp_path, {})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="neither"):
        read_vocabulary(tmp_path, {})
    for content in ("{", "[]", '{"model": 3}', '{"model": {"type": "BPE"}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(Refused):
            read_vocabulary(tmp_path, {})


def test_chat_templates_from_all_places(case: Case) -> None:
    eos = {"eos_token": "<|im_end|>"}
    several = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    found = case.read({**eos, "chat_template": several}).vocabulary
    assert found["tokenizer.chat_template"] == "A"
    assert found["tokenizer.chat_templates"] == ["tool_use"]
    assert found["tokenizer.chat_template.tool_use"] == "B"
    (case.folder / "chat_template.jinja").write_text("C")
    (case.folder / "additional_chat_templates").mkdir()
    (case.folder / "additional_chat_templates" / "rag.jinja").write_text("D")
    found = case.read({**eos, "chat_template": "A"}).vocabulary
    assert found["tokenizer.chat_template"] == "C"
    assert found["tokenizer.chat_template.rag"] == "D"


def test_generation_blocks_render_as_their_content() -> None:
    jinja2 = pytest.importorskip("jinja2")
    plain = "x\n  {%- if true %}\n y {{ z }}{%- endif -%}\n w"
    marked = plain.replace("if true", "generation").replace("endif", "endgeneration")
    for trim in (False, True):
        environment = jinja2.Environment(trim_blocks=trim, lstrip_blocks=trim)
        render = [
            environment.from_string(t).render(z=1) for t in (without_generation(marked), plain)
        ]
        assert render[0] == render[1]


@pytest.mark.skipif(not REAL.is_dir(), reason="models/smollm2-135m is not there: make demo puts it")
def test_the_real_model(builder: Any) -> None:
    config = json.loads((REAL / "config.json").read_text())
    vocabulary, found, count = builder.differences(REAL, config)
    assert count > 3500
    assert not found, found[:3]
    assert not vocabulary.notes
    assert vocabulary.size == config["vocab_size"]
    assert builder.opened[0].stops_at(vocabulary["tokenizer.ggml.eos_token_id"])
    _, with_added, _ = builder.differences(
        REAL, config, ["", "Hello", "<|im_start|>user\n"], add=True
    )
    assert not with_added


@pytest.mark.skipif(not REAL.is_dir(), reason="models/smollm2-135m is not there: make demo puts it")
@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[1:2]])
def test_the_real_chat_template_renders_as_in_transformers(messages: Any) -> None:
    transformers = pytest.importorskip("transformers")
    formats = pytest.importorskip("llama_cpp.llama_chat_format")
    vocabulary = read_vocabulary(REAL, json.loads((REAL / "config.json").read_text()))
    texts = vocabulary["tokenizer.ggml.tokens"]
    render = formats.Jinja2ChatFormatter(
        template=vocabulary["tokenizer.chat_template"],
        bos_token=texts[vocabulary["tokenizer.ggml.bos_token_id"]],
        eos_token=texts[vocabulary["tokenizer.ggml.eos_token_id"]],
    )
    expected = transformers.AutoTokenizer.from_pretrained(REAL).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert render(messages=messages).prompt == expected
