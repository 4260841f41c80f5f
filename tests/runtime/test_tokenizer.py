"""Encoding and decoding are those of transformers, and streams never break a character."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pliant.errors import CheckpointError, DataError, UnsupportedError
from pliant.runtime import Tokenizer

TEXTS = [
    "",
    "Once upon a time",
    " a leading space",
    "two  spaces,\n\nlines\tand a tab ",
    "Café naïve e\u0301 a\u0308\u0323",
    "中文字 日本語 한국어",
    "😀👍🏽👩\u200d👩\u200d👧 🇩🇪",
    "<s>tokens</s> written <|endoftext|> as text<|im_end|>",
    "\ufeff\u2028 \x00 \x7f end",
]
MANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def streamed(tokenizer: Tokenizer, tokens: list[int], *, continues: bool = False) -> list[str]:
    decoder = tokenizer.decoder(continues=continues)
    return [*map(decoder.push, tokens), decoder.finish()]


def save(folder: Path, backend: tokenizers.Tokenizer, **configs: Any) -> Path:
    """A folder with a tokenizer.json and the JSON files given by stem."""
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    for stem, content in configs.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def reference(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


class TestStreaming:
    @given(text=st.text(max_size=40))
    @MANY
    def test_pieces_join_to_the_full_text(self, any_tokenizer: Tokenizer, text: str) -> None:
        tokens = any_tokenizer.encode(text)
        assert "".join(streamed(any_tokenizer, tokens)) == any_tokenizer.decode(tokens)

    @given(places=st.lists(st.floats(0, 1, exclude_max=True), max_size=30))
    @MANY
    def test_any_tokens_at_all_join_to_the_full_text(
        self, any_tokenizer: Tokenizer, places: list[float]
    ) -> None:
        tokens = [int(place * any_tokenizer.vocab_size) for place in places]
        assert "".join(streamed(any_tokenizer, tokens)) == any_tokenizer.decode(tokens)

    @pytest.mark.parametrize("text", TEXTS)
    @pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
    def test_no_piece_holds_a_broken_character(
        self, backends: dict[str, tokenizers.Tokenizer], kind: str, text: str
    ) -> None:
        tokenizer = Tokenizer(backends[kind])
        tokens = tokenizer.encode(text, add_bos=False)
        pieces = streamed(tokenizer, tokens)
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == tokenizer.decode(tokens)

    def test_a_character_of_four_tokens_appears_whole(
        self, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        tokenizer = Tokenizer(backends["byte_fallback"])
        tokens = [3 + byte for byte in "😀".encode()]
        assert streamed(tokenizer, tokens) == ["", "", "", "😀", ""]

    @pytest.mark.parametrize("raw", [b"\xf0\x9f", b"\xe2A", b"\xff", b"A\x80B", b"\xc3\xc3\xa9"])
    def test_invalid_utf8_becomes_replacement_characters(
        self, backends: dict[str, tokenizers.Tokenizer], raw: bytes
    ) -> None:
        tokenizer = Tokenizer(backends["byte_fallback"])
        tokens = [3 + byte for byte in raw]
        assert "".join(streamed(tokenizer, tokens)) == raw.decode(errors="replace")

    def test_a_continuation_keeps_the_space_of_its_first_word(
        self, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        tokenizer = Tokenizer(backends["byte_fallback"])
        tokens = tokenizer.encode("once", add_bos=False)
        assert "".join(streamed(tokenizer, tokens)) == "once"
        assert "".join(streamed(tokenizer, tokens, continues=True)) == " once"

    def test_ids_without_a_token_say_nothing(self, any_tokenizer: Tokenizer) -> None:
        assert any_tokenizer.decode([any_tokenizer.vocab_size + 7]) == ""


class TestAgainstTransformers:
    @pytest.mark.parametrize("text", TEXTS)
    def test_text_of_trained_models(self, shared_model: Path, text: str) -> None:
        theirs, ours = reference(shared_model), Tokenizer.load(shared_model)
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        bare = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_bos=False) == bare
        for skip in (False, True):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special=skip) == expected

    def test_start_and_end_of_trained_models(self, shared_model: Path) -> None:
        theirs, ours = reference(shared_model), Tokenizer.load(shared_model)
        assert ours.bos_id == theirs.bos_token_id
        assert ours.eos_ids == {theirs.eos_token_id}
        assert ours.special_tokens == theirs.special_tokens_map

    def test_random_byte_level_tokens(self, backends: dict[str, tokenizers.Tokenizer]) -> None:
        # Also where the bytes are no UTF-8, the two agree on how much U+FFFD replaces.
        tokenizer, random = Tokenizer(backends["byte_level"]), np.random.default_rng(0)
        for _ in range(300):
            tokens = random.integers(0, tokenizer.vocab_size, 9).tolist()
            expected = backends["byte_level"].decode(tokens, skip_special_tokens=False)
            assert tokenizer.decode(tokens, skip_special=False) == expected

    @pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace"])
    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
            {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": None},
            {"bos_token": "<bos>", "add_bos_token": True, "add_eos_token": True},
            {
                "eos_token": "<end>",
                "added_tokens_decoder": {
                    "700": {"content": "<tool>", "special": False, "normalized": False},
                    "900": {"content": "<end>", "special": True, "normalized": False},
                },
            },
            {"extra_special_tokens": ["<img>"], "pad_token": "<pad>"},
            {"additional_special_tokens": ["<img>"], "unk_token": "<unk>"},
        ],
    )
    def test_configurations(
        self,
        tmp_path: Path,
        backends: dict[str, tokenizers.Tokenizer],
        kind: str,
        config: dict[str, Any],
    ) -> None:
        folder = save(tmp_path, backends[kind], tokenizer_config=config)
        theirs, ours = reference(folder), Tokenizer.load(folder)
        assert ours.special_tokens == theirs.special_tokens_map
        for text in [*TEXTS, "a <tool> b <end><img> <pad> <bos>c"]:
            ids = theirs(text)["input_ids"]
            assert ours.encode(text) == ids
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    def test_truncation_and_padding_in_the_file_are_not_applied(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        backend = tokenizers.Tokenizer.from_str(backends["byte_level"].to_str())
        backend.enable_truncation(2)
        backend.enable_padding(length=9)
        folder = save(tmp_path, backend)
        text = "Once upon a time"
        assert Tokenizer.load(folder).encode(text) == reference(folder)(text)["input_ids"]


class TestStartAndEnd:
    def test_add_bos(self, backends: dict[str, tokenizers.Tokenizer]) -> None:
        tokenizer = Tokenizer(backends["byte_fallback"], bos_id=1)
        assert tokenizer.encode("a")[:1] == [1]
        assert tokenizer.encode("a", add_bos=True)[:2] == tokenizer.encode("a")[:2]
        assert 1 not in tokenizer.encode("a", add_bos=False)
        plain = Tokenizer(backends["byte_level"], bos_id=0)
        assert plain.encode("a", add_bos=True) == [0, *plain.encode("a")]

    @pytest.mark.parametrize(
        ("generation", "config", "tokens", "expected"),
        [
            (None, None, {}, set()),
            ({"eos_token_id": 2}, None, {}, {2}),
            ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, {}, {5, 6, 7}),
            (None, {"eos_token_id": None}, {"eos_token": "</s>"}, {2}),
            ({"eos_token_id": [5, True, "x", -1]}, None, {}, {5}),
            (None, None, {"eos_token": {"content": "</s>", "__type": "AddedToken"}}, {2}),
        ],
    )
    def test_eos_ids_come_from_every_file(
        self,
        tmp_path: Path,
        backends: dict[str, tokenizers.Tokenizer],
        generation: dict[str, Any] | None,
        config: dict[str, Any] | None,
        tokens: dict[str, Any],
        expected: set[int],
    ) -> None:
        configs = {"generation_config": generation, "config": config, "tokenizer_config": tokens}
        folder = save(
            tmp_path,
            backends["byte_fallback"],
            **{stem: content for stem, content in configs.items() if content is not None},
        )
        assert Tokenizer.load(folder).eos_ids == expected

    def test_bos_falls_back_to_the_config_and_start_to_eos(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        folder = save(tmp_path, backends["byte_level"], config={"bos_token_id": 1})
        assert Tokenizer.load(folder).start_id == 1
        assert Tokenizer(backends["byte_level"], eos_ids=[2, 0]).start_id == 0
        assert Tokenizer(backends["byte_level"]).start_id is None


class TestBadInput:
    def test_a_sentencepiece_model_alone_is_refused_with_the_way_out(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
        with pytest.raises(UnsupportedError, match="save_pretrained"):
            Tokenizer.load(tmp_path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
            Tokenizer.load(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"{}", b"[1]", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b"[" * 9999],
    )
    def test_a_damaged_tokenizer(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(CheckpointError, match="Copy it again"):
            Tokenizer.load(tmp_path)

    @pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 99999, b"[]", b"3"])
    def test_a_damaged_configuration(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer], content: bytes
    ) -> None:
        save(tmp_path, backends["byte_level"])
        (tmp_path / "tokenizer_config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
            Tokenizer.load(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [{"added_tokens_decoder": {"x": "a"}}, {"added_tokens_decoder": ["a"]},
         {"added_tokens_decoder": {"9" * 5000: "a"}}, {"bos_token": "\ud800"}],
        ids=lambda content: str(content)[:40],
    )  # fmt: skip
    def test_tokens_that_cannot_be_added(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer], content: Any
    ) -> None:
        save(tmp_path, backends["byte_level"], tokenizer_config=content)
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
            Tokenizer.load(tmp_path)

    @pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
    def test_pipes_are_not_waited_for(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer], name: str
    ) -> None:
        save(tmp_path, backends["byte_level"])
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointError, match="not a regular file"):
            Tokenizer.load(tmp_path)

    def test_files_that_are_not_listed_are_not_there(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        """What lies in an artifact's folder and is not of it changes nothing, not even a pipe."""
        folder = save(tmp_path, backends["byte_level"], config={"bos_token_id": 1})
        (folder / "chat_template.jinja").write_text("x")
        save(folder, backends["byte_level"], tokenizer_config={"chat_template": "y"})
        os.mkfifo(folder / "special_tokens_map.json")
        listed = Tokenizer.load(folder, ["tokenizer.json", "config.json"])
        assert (listed.bos_id, listed.chat_template) == (1, None)
        with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
            Tokenizer.load(folder, ["config.json"])

    def test_a_tokenizer_that_loads_and_cannot_read(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        """The library panics where a template wants a second text."""
        backend = tokenizers.Tokenizer.from_str(backends["byte_level"].to_str())
        backend.post_processor = tokenizers.processors.TemplateProcessing(single="$B $A")
        tokenizer = Tokenizer.load(save(tmp_path, backend))
        with pytest.raises(CheckpointError, match="reads no text"):
            tokenizer.encode("a")

    def test_text_that_was_not_utf8(self, any_tokenizer: Tokenizer) -> None:
        text = b"caf\xe9".decode("utf-8", "surrogateescape")
        with pytest.raises(DataError, match="character 3 of 4"):
            any_tokenizer.encode(text)
