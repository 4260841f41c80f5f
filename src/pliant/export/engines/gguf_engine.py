"""llama.cpp behind the actions that `run.py` answers; imports nothing of pliant."""

from __future__ import annotations

import time
from typing import Any


class Engine:
    """A GGUF file in llama.cpp through llama-cpp-python, keys and values in float32."""

    def load(self, path: str, threads: int) -> dict[str, Any]:
        """Load a file; versions, seconds, and the most tokens of a text."""
        import llama_cpp

        self._library = llama_cpp
        start = time.perf_counter()
        model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
        arch = model.metadata["general.architecture"]
        context = int(model.metadata[f"{arch}.context_length"])
        model.close()
        self._model = llama_cpp.Llama(
            path, n_ctx=min(context, 4096), n_batch=512, n_threads=threads,
            n_threads_batch=threads, logits_all=True, verbose=False, type_k=0, type_v=0,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        return {
            "engine": f"llama.cpp of llama-cpp-python {llama_cpp.__version__}",
            "seconds": seconds,
            "context": min(context, 4096),
        }

    def encode(self, texts: list[str]) -> dict[str, Any]:
        """Token ids of texts."""
        encoded = (self._model.tokenize(text.encode(), True, True) for text in texts)
        return {"ids": [list(ids) for ids in encoded]}

    def chat(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Token ids of a conversation, None where there is no chat template."""
        metadata = self._model.metadata
        template = metadata.get("tokenizer.chat_template")
        if not template:
            return {"ids": None}
        formatter = self._library.llama_chat_format.Jinja2ChatFormatter(
            template=template, eos_token=self._text("eos"), bos_token=self._text("bos")
        )
        prompt = formatter(messages=messages).prompt
        return {"ids": list(self._model.tokenize(prompt.encode(), False, True))}

    def _text(self, kind: str) -> str:
        """The text of a special token."""
        index = self._model.metadata.get(f"tokenizer.ggml.{kind}_token_id")
        return "" if index is None else str(self._model._model.token_get_text(int(index)))

    def logits(self, tokens: list[int], output: str) -> dict[str, Any]:
        """Write the logits behind each token to a file of float32."""
        self._model.reset()
        self._model.eval(tokens)
        scores = self._model.scores[: len(tokens)]
        scores.astype("<f4").tofile(output)
        return {"vocabulary": scores.shape[1]}

    def greedy(self, tokens: list[int], count: int) -> dict[str, Any]:
        """The likeliest next tokens, one after another; end tokens do not end it."""
        self._model.reset()
        chosen: list[int] = []
        step = tokens
        for _ in range(count):
            self._model.eval(step)
            chosen.append(int(self._model.scores[self._model.n_tokens - 1].argmax()))
            step = chosen[-1:]
        return {"tokens": chosen}
