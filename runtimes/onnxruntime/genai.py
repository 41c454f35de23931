"""A folder in onnxruntime-genai: tokens, logits, generation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Genai:
    """A loaded folder. Every call starts from an empty cache."""

    def __init__(
        self,
        folder: Path,
        graph: bytes | None,  # in place of the file's
        context: int,
        threads: int,
        options: Mapping[str, str],  # of the session, by key
    ) -> None:
        import onnxruntime_genai  # type: ignore[import-not-found,unused-ignore]

        onnxruntime_genai.disable_telemetry_events()
        self._genai: Any = onnxruntime_genai
        told = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
        config = onnxruntime_genai.Config(str(folder))
        session = {"intra_op_num_threads": threads, **options}
        # Room for the token that is sampled after a window as long as the model's context.
        room = max(int(told["context_length"]), context + 1)
        over = {"model": {"context_length": room, "decoder": {"session_options": session}}}
        config.overlay(json.dumps(over))
        if graph is not None:
            config.add_model_data(str(told["decoder"]["filename"]), graph)
        self._model: Any = onnxruntime_genai.Model(config)
        self._tokenizer: Any = None
        self.padding = int(told.get("pad_token_id", 0))

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Control tokens are always read as such; nothing is added."""
        if self._tokenizer is None:
            self._tokenizer = self._genai.Tokenizer(self._model)
        return np.asarray(self._tokenizer.encode(text), np.int32)

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """[len(tokens), vocab]."""
        generator = self.started(tokens[None], 1)
        return np.array(generator.get_output("logits")[0], np.float32)

    def generate(self, tokens: NDArray[np.int32], n: int) -> NDArray[np.int32]:
        """Up to `n` greedy tokens; an end token is the last."""
        generator = self.started(tokens[None], n)
        made: list[int] = []  # the generator's own sequence leaves an end token out
        while not generator.is_done():
            generator.generate_next_token()
            made.append(int(generator.get_next_tokens()[0]))
        return np.array(made, np.int32)

    def started(self, prompts: NDArray[np.int32], n: int, *, stop: bool = True) -> Any:
        """A generator that has read `prompts` [sequences, length], with room for `n` greedy tokens
        of each; without `stop` end tokens are not chosen."""
        sequences, length = prompts.shape
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(
            max_length=length + n,
            min_length=0 if stop else length + n,
            batch_size=sequences,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(prompts if sequences > 1 else prompts[0])
        return generator
