"""transformers behind the actions that `run.py` answers; imports nothing of pliant."""

from __future__ import annotations

import time
from typing import Any


class Engine:
    """A folder in the classes that `transformers` has for it, weights widened to float32."""

    def load(self, path: str, threads: int) -> dict[str, Any]:
        """Load a folder; versions, seconds, and the most tokens of a text."""
        import torch
        import transformers

        torch.set_num_threads(threads)
        start = time.perf_counter()
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        seconds = time.perf_counter() - start
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        return {
            "engine": f"transformers {transformers.__version__}",
            "seconds": seconds,
            "context": self._model.config.max_position_embeddings,
        }

    def encode(self, texts: list[str]) -> dict[str, Any]:
        """Token ids of texts."""
        return {"ids": [self._tokenizer(text).input_ids for text in texts]}

    def chat(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Token ids of a conversation, None where there is no chat template."""
        if not self._tokenizer.chat_template:
            return {"ids": None}
        ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return {"ids": list(ids)}

    def logits(self, tokens: list[int], output: str) -> dict[str, Any]:
        """Write the logits behind each token to a file of float32."""
        with self._torch.no_grad():
            logits = self._model(self._torch.tensor([tokens])).logits[0]
        logits.numpy().astype("<f4").tofile(output)
        return {"vocabulary": logits.shape[1]}

    def greedy(self, tokens: list[int], count: int) -> dict[str, Any]:
        """The likeliest next tokens, one after another; end tokens do not end it."""
        torch, chosen, cache = self._torch, [], None
        step = torch.tensor([tokens])
        with torch.no_grad():
            for _ in range(count):
                output = self._model(step, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                chosen.append(int(output.logits[0, -1].argmax()))
                step = torch.tensor([chosen[-1:]])
        return {"tokens": chosen}
