"""`PliantLM`: a cut of an artifact as a model of lm-eval.

What its Hugging Face model decides about texts is decided alike here: which token begins one, how
context and continuation are split, how windows roll, which texts end an answer. So on a dense model
both give the same scores, up to the rounding of logits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from pliant.artifact.address import split_address
from pliant.bits.cache import CacheType
from pliant.errors import GenerationError, UsageError
from pliant.evaluate.continuations import Continuation, score_continuations
from pliant.runtime import SamplingOptions, Tokenizer, generate_batch, open_artifact
from pliant.runtime.assembly import Activations

logger = logging.getLogger(__name__)
#: Sequences at a time where none or "auto" is asked for.
_LANES = 8
#: Requests between two looks at the progress bar.
_ROUND = 64
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@register_model("pliant")
class PliantLM(TemplateLM):  # type: ignore[misc,unused-ignore]
    """A subnet of an artifact, on the CPU.

    - `pretrained`: `X.pliant` or `X.pliant@cut`; `subnet`: the cut, an address or a saved name.
    - `batch_size`: sequences at a time; "auto" is 8.
    - `threads`, `activations` ("int8", "float32"), `cache_type`: options of `Engine`.
    - `max_length`: most tokens fed, the model's context unless given.
    - `add_bos_token`: True or False in place of what the tokenizer does by itself.
    - `prefix_token_id`: the token before a text that has no context; BOS, or else EOS.

    `UsageError` for anything else, so that no option is silently without effect.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str,
        subnet: str = "",
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        threads: int | None = None,
        activations: Activations = "int8",
        cache_type: CacheType | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UsageError(
                f"--model_args {', '.join(sorted(unknown))}: the model pliant takes pretrained, "
                "subnet, threads, activations, cache_type, max_length, add_bos_token and "
                "prefix_token_id."
            )
        if device not in (None, "cpu"):
            logger.warning("pliant runs on the CPU; --device %s is not used", device)
        path, address = split_address(pretrained)
        if address and subnet and address != subnet:
            raise UsageError(f"Two cuts were named, {address!r} and {subnet!r}; name one of them.")
        self._name = f"{path.name}@{subnet or address}"
        self._opened = open_artifact(path)
        self.engine = self._opened.engine(
            subnet or address, threads=threads, activations=activations, cache_type=cache_type
        ).engine
        self.tokenizer: Tokenizer = self._opened.tokenizer
        self.batch_size = _lanes(batch_size)
        self._max_length = max_length
        self._add_bos = add_bos_token
        self._prefix = prefix_token_id

    @property
    def eot_token_id(self) -> int:
        """The end token that the tokenizer names, or the first that the model has."""
        named = self.tokenizer.special_tokens.get("eos_token")
        ids = self.tokenizer.encode(named, add_bos=False) if named else []
        if len(ids) == 1:
            return ids[0]
        if not self.tokenizer.eos_ids:
            raise UsageError("This model has no end token; set eos_token in tokenizer_config.json.")
        return min(self.tokenizer.eos_ids)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        if self._prefix is not None:
            return self._prefix
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """Most tokens fed at once."""
        return self._max_length or self.engine.max_context

    @property
    def max_gen_toks(self) -> int:
        """Tokens written where a task does not say: 256, or half of a short context."""
        return min(256, max(1, self.max_length // 2))

    @property
    def tokenizer_name(self) -> str:
        """What caches of requests are named by: the artifact and its cut."""
        return self._name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **unused: Any
    ) -> list[int]:
        """Token ids; BOS is not added to a text that begins with it."""
        add = self._add_bos if add_special_tokens is None else add_special_tokens
        prefix = self.tokenizer.decode([self.prefix_token_id], skip_special=False)
        if add_special_tokens is None and prefix and string.startswith(prefix):
            add = False
        return self.tokenizer.encode(string, add_bos=add)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        return self.tokenizer.decode(tokens, skip_special=skip_special_tokens)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        wanted = [Continuation(tuple(context), tuple(tokens)) for _, context, tokens in requests]
        with tqdm(total=len(wanted), disable=disable_tqdm, desc="loglikelihood") as bar:
            scores = score_continuations(
                self.engine,
                wanted,
                lanes=self.batch_size,
                max_length=self.max_length,
                progress=lambda _, done, total: bar.update(done - bar.n),
            )
        answers = [(score.log_likelihood, score.is_greedy) for score in scores]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """ln p of whole texts, each token scored once in windows of `max_length`."""
        windows = [
            list(
                map(
                    make_disjoint_window,
                    get_rolling_token_windows(
                        token_list=self.tok_encode(request.args[0]),
                        prefix_token=self.prefix_token_id,
                        max_seq_len=self.max_length,
                        context_len=1,
                    ),
                )
            )
            for request in requests
        ]
        flat = [(None, *window) for text in windows for window in text]
        scores = iter(self._loglikelihood_tokens(flat, disable_tqdm=disable_tqdm))
        sums = [sum(next(scores)[0] for _ in text) for text in windows]
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a text that ends it."""
        plans = [self._plan(*request.args) for request in requests]
        texts: list[str] = []
        with tqdm(total=len(plans), disable=disable_tqdm, desc="generate_until") as bar:
            for begin in range(0, len(plans), _ROUND):
                part = plans[begin : begin + _ROUND]
                written = generate_batch(
                    self.engine,
                    self.tokenizer,
                    [prompt for prompt, _, _ in part],
                    [options for _, options, _ in part],
                    max_sequences=self.batch_size,
                )
                for generation, (_, _, until) in zip(written, part, strict=True):
                    text = self.tok_decode(generation.tokens)
                    texts.append(postprocess_generated_text(text, until, None))
                bar.update(len(part))
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _plan(
        self, context: str, gen_kwargs: dict[str, Any]
    ) -> tuple[list[int], SamplingOptions, list[str]]:
        """Prompt, options and ending texts of one request."""
        wanted: dict[str, Any] = {**normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)}
        eos = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(wanted.pop("until", None), eos=eos)
        most = int(wanted.pop("max_gen_toks"))
        wanted.pop("do_sample")
        unknown = sorted(set(wanted) - set(_SAMPLING))
        if unknown:
            raise UsageError(
                f"gen_kwargs {', '.join(unknown)}: pliant takes until, max_gen_toks, do_sample, "
                f"{', '.join(_SAMPLING)}."
            )
        room = self.max_length - most
        if room < 1:
            raise UsageError(
                f"{most} tokens are to be written and the model takes {self.max_length} in all; "
                "ask for less with --gen_kwargs max_gen_toks."
            )
        stop = tuple(text for text in until if text)
        options = SamplingOptions(max_tokens=most, stop=stop, **wanted)
        return self.tok_encode(context)[-room:], options, until

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text; without generation prompt it stays open after the last message.

        Where the template refuses a system message the conversation is given without it, with a
        warning.
        """
        try:
            text = self.tokenizer.render_chat(
                chat_history, add_generation_prompt=add_generation_prompt
            )
        except GenerationError:
            without = [message for message in chat_history if message["role"] != "system"]
            if len(without) == len(chat_history) or not without:
                raise
            logger.warning("the chat template refuses the system message; it is left out")
            return self.apply_chat_template(without, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        place = text.rfind(last)
        if place < 0:
            raise GenerationError(
                "The chat template does not write the last message as it is, so it cannot be "
                "continued; let the answer begin a new one."
            )
        return text[: place + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of a template: the default one, or that of a name; None where not wanted."""
        if chat_template is False or chat_template is None:
            return None
        templates = self.tokenizer.chat_template.templates if self.tokenizer.chat_template else {}
        name = chat_template if isinstance(chat_template, str) else "default"
        if name not in templates:
            raise UsageError(
                f"The chat template {name!r} was asked for; this model has "
                f"{', '.join(sorted(templates)) or 'none'}."
            )
        return templates[name]

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results: the cut and its exact size."""
        subnet = self.engine.subnet
        return {
            "model_cut": self._name,
            "model_weight_bytes": subnet.weight_bytes,
            "model_blocks": list(subnet.shape.blocks),
            "model_kernels": self.engine.kernels,
        }


def _lanes(batch_size: int | str | None) -> int:
    """Sequences at a time, from what lm-eval passes on: a number, its text, "auto" or "auto:N"."""
    if batch_size is None or str(batch_size).startswith("auto"):
        return _LANES
    try:
        lanes = int(batch_size)
    except ValueError:
        lanes = 0
    if lanes < 1:
        raise UsageError(f"--batch_size {batch_size}: give a number from 1 on, or auto.")
    return lanes
