"""Chat templates render as transformers renders them, and hostile ones are stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from pliant.errors import CheckpointError, GenerationError
from pliant.runtime import ChatTemplate, Tokenizer, plain_chat

# Written here in the manner of four families; each uses features that the real ones lean on.
CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}{%- set ns.last = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- if '</think>' in content and loop.index0 < ns.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{% set first_user_prefix = messages[0]['content'] + '\\n\\n' %}
{% set loop_messages = messages[1:] %}
{% else %}
{% set first_user_prefix = "" %}{% set loop_messages = messages %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if (message['role'] == 'assistant') %}{% set role = "model" %}
    {% else %}{% set role = message['role'] %}
    {% endif %}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {% if message['content'] is iterable and message['content'] is not string %}
        {% for item in message['content'] %}{{ item['text'] | trim }}{% endfor %}
    {% else %}
        {{ message['content'] | trim }}
    {% endif %}
    {{ '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{'<start_of_turn>model\\n'}}
{% endif %}
"""
MISTRAL = """\
{{ bos_token }}{% macro inst(text, last) %}[INST] {{ text }}{% if last %} [/INST]\
{% else %} [/INST] {% endif %}{% endmacro %}
{%- for message in messages -%}
  {%- if message.role == "user" -%}{{ inst(message.content, loop.last) }}
  {%- elif message.role == "assistant" -%}
    {%- generation -%}{{ message.content ~ eos_token }}{%- endgeneration -%}
  {%- elif message.role == "system" -%}{% set x %}{{ message.content | upper }}!{% endset %}
    {{- "%s (%d)" | format(x, loop.index) }}{{ "{:>6}|".format(loop.length) -}}
  {%- else -%}{{ raise_exception("Only user, system and assistant roles are supported!") }}
  {%- endif -%}
{%- endfor -%}
{{ {"stats": {"n": messages | length, "names": messages | map(attribute="role") | unique | list}} \
| tojson(indent=1) }}
"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA_3, "gemma": GEMMA, "mistral": MISTRAL}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Tell me a story."}],
    "system": [
        {"role": "system", "content": "You are <b>brief</b> & kind. "},
        {"role": "user", "content": "  Hällo 😀\n"},
    ],
    "long": [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA fox.", "tool_calls": None},
        {"role": "user", "content": "Where does <|im_end|> it live?"},
        {"role": "assistant", "content": "In the wood."},
        {"role": "user", "content": "中文 {{ 7 * 7 }} {% raw %}"},
    ],
}
SPECIAL_TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def chat_folder(folder: Path, backend: tokenizers.Tokenizer, template: Any) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    config = {**SPECIAL_TOKENS, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def reference(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def render(template: str, **variables: Any) -> str:
    return ChatTemplate({"default": template}).render(CONVERSATIONS["one"], variables=variables)


class TestAgainstTransformers:
    @pytest.mark.parametrize("conversation", CONVERSATIONS)
    @pytest.mark.parametrize("template", TEMPLATES)
    def test_token_by_token(
        self,
        tmp_path: Path,
        backends: dict[str, tokenizers.Tokenizer],
        template: str,
        conversation: str,
    ) -> None:
        folder = chat_folder(tmp_path, backends["byte_level"], TEMPLATES[template])
        theirs, ours = reference(folder), Tokenizer.load(folder)
        messages = CONVERSATIONS[conversation]
        for prompt in (True, False):
            text = theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
            assert ours.render_chat(messages, add_generation_prompt=prompt) == text
            ids = theirs.apply_chat_template(
                messages, add_generation_prompt=prompt, return_dict=False
            )
            assert ours.apply_chat_template(messages, add_generation_prompt=prompt) == ids

    def test_tools_and_variables(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        folder = chat_folder(tmp_path, backends["byte_level"], CHATML)
        theirs, ours = reference(folder), Tokenizer.load(folder)
        tools = [{"type": "function", "function": {"name": "wëather", "parameters": {"n": 1.5}}}]
        messages = CONVERSATIONS["system"]
        expected = theirs.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        found = ours.render_chat(messages, tools=tools, variables={"enable_thinking": False})
        assert found == expected
        assert "</think>" in found

    def test_parts_of_a_message(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        folder = chat_folder(tmp_path, backends["byte_level"], GEMMA)
        parts = [{"type": "text", "text": " one"}, {"type": "text", "text": "two "}]
        messages = [{"role": "user", "content": parts}]
        expected = reference(folder).apply_chat_template(messages, tokenize=False)
        assert Tokenizer.load(folder).render_chat(messages, add_generation_prompt=False) == expected

    def test_named_templates(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        named = [
            {"name": "default", "template": "plain {{ messages[0].content }}"},
            {"name": "tool_use", "template": "tools {{ tools | length }}"},
        ]
        folder = chat_folder(tmp_path, backends["byte_level"], named)
        theirs, ours = reference(folder), Tokenizer.load(folder)
        messages = CONVERSATIONS["one"]
        for tools in (None, [{"name": "f"}]):
            expected = theirs.apply_chat_template(messages, tools=tools, tokenize=False)
            assert ours.render_chat(messages, tools=tools, add_generation_prompt=False) == expected

    def test_a_file_goes_before_the_configuration(
        self, tmp_path: Path, backends: dict[str, tokenizers.Tokenizer]
    ) -> None:
        folder = chat_folder(tmp_path, backends["byte_level"], "from the configuration")
        (folder / "chat_template.jinja").write_text("from the file: {{ eos_token }}\n")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("for tools")
        messages = CONVERSATIONS["one"]
        for tools in (None, [{"name": "f"}]):
            expected = reference(folder).apply_chat_template(messages, tools=tools, tokenize=False)
            assert Tokenizer.load(folder).render_chat(messages, tools=tools) == expected


HOSTILE = {
    "attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute by filter": "{{ ('' | attr('__class__')).__mro__ }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "format string": "{{ '{0.__class__.__mro__}'.format('') }}",
    "change of the input": "{{ messages.append(1) }}",
    "attribute on a namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "large range": "{% for i in range(100000000) %}{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "nested lists": "{% for a in range(9999) %}{{ range(99999) | list }}{% endfor %}",
    "calls that double": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for i in [[1]] recursive %}{{ loop([i, i]) }}{% endfor %}",
    "text times number": "{{ 'a' * 10000000000 }}",
    "number times text": "{{ 10000000000 * 'a' }}",
    "list times number": "{{ [0] * 10000000000 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "product of powers": "{% set n = namespace(x=2) %}{% for i in range(64) %}"
    "{% set n.x = n.x * n.x %}{% endfor %}",
    "doubled sum": "{% set n = namespace(s='aa') %}{% for i in range(64) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}",
    "doubled join": "{% set n = namespace(s='aa') %}{% for i in range(64) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubled block": "{% set n = namespace(s='aa') %}{% for i in range(64) %}"
    "{% set s %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = s %}{% endfor %}",
    "doubled list": "{% set n = namespace(s=[1]) %}{% for i in range(64) %}"
    "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "doubled list as json": "{% set n = namespace(s=[1]) %}{% for i in range(64) %}"
    "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}",
    "replacement": "{% set s = 'a' * 1000000 %}{{ s.replace('a', s) }}",
    "replacement by filter": "{% set s = 'a' * 1000000 %}{{ s | replace('a', s) }}",
    "joined": "{% set s = 'a' * 1000000 %}{{ s.join(s) }}",
    "wide field": "{{ '%1000000000d' % 1 }}",
    "wide field by argument": "{{ '%*d' % (1000000000, 1) }}",
    "wide format": "{{ '{:1000000000d}'.format(1) }}",
    "wide format filter": "{{ '%1000000000d' | format(1) }}",
    "centered": "{{ 'a'.center(1000000000) }}",
    "indented": "{{ ('\\n' * 100000) | indent(1000000) }}",
    "filled batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "dummy text": "{{ lipsum(n=100000000) }}",
    "a file": "{% include '/etc/passwd' %}",
}


class TestHostileTemplates:
    @pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
    def test_is_refused_with_a_sentence(self, template: str) -> None:
        with pytest.raises(GenerationError, match=r"chat_template\.jinja") as caught:
            render(template)
        assert len(str(caught.value)) < 500

    @pytest.mark.parametrize(
        "name", ["self.__init__", "cycler.__init__", "joiner._x", "namespace.__init__", "dict.mro"]
    )
    def test_nothing_of_the_environment_is_in_reach(self, name: str) -> None:
        with pytest.raises(GenerationError):
            render("{{ NAME.__globals__ }}".replace("NAME", name))

    def test_steps_are_counted_per_rendering(self) -> None:
        template = ChatTemplate({"default": "{% for i in range(90000) %}{% endfor %}done"})
        for _ in range(15):
            assert template.render(CONVERSATIONS["one"]) == "done"

    def test_a_long_conversation_is_fine(self) -> None:
        turns = [
            {"role": "user", "content": "x" * 200},
            {"role": "assistant", "content": "y" * 200},
        ]
        text = ChatTemplate({"default": CHATML}).render(turns * 1000)
        assert text.count("<|im_start|>user") == 1000


class TestRefusals:
    def test_a_template_that_raises_tells_why(self) -> None:
        messages = [{"role": "assistant", "content": "first"}]
        with pytest.raises(GenerationError, match="roles must alternate"):
            ChatTemplate({"default": GEMMA}).render(messages, variables=SPECIAL_TOKENS)

    @pytest.mark.parametrize("template", [
        "{% for %}", "{{ x", "{% endif %}", "{{ 'a' | nosuch }}", "{{ " + "9" * 5000 + " }}",
    ])  # fmt: skip
    def test_a_template_that_is_no_template(self, template: str) -> None:
        with pytest.raises(GenerationError, match="not valid jinja2"):
            render(template)

    @pytest.mark.parametrize(
        "template", ["{{ 1 / 0 }}", "{{ messages[7].role.x }}", "{{ none + 1 }}"]
    )
    def test_a_template_that_fails(self, template: str) -> None:
        with pytest.raises(GenerationError, match="refuses this conversation"):
            render(template)

    def test_no_template(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(GenerationError, match="no chat template"):
            tokenizer.apply_chat_template(CONVERSATIONS["one"])
        with pytest.raises(GenerationError, match="none named 'default'"):
            ChatTemplate({"rag": "x"}).render(CONVERSATIONS["one"])

    def test_conversations_that_are_none(self) -> None:
        template = ChatTemplate({"default": "x"})
        with pytest.raises(GenerationError, match="at least one message"):
            template.render([])
        with pytest.raises(GenerationError, match="list of messages"):
            template.render([{"role": "user", "content": object()}])

    @pytest.mark.parametrize("entry", [3, {"name": "default"}, {"name": 1, "template": "x"}])
    def test_a_damaged_list_of_templates(self, tmp_path: Path, entry: Any) -> None:
        with pytest.raises(CheckpointError, match="a name and a"):
            ChatTemplate.read(tmp_path, {"chat_template": [entry]})

    def test_a_template_file_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
        with pytest.raises(CheckpointError, match="cannot be read"):
            ChatTemplate.read(tmp_path, {})

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "chat_template.jinja")
        with pytest.raises(CheckpointError, match="not a regular file"):
            ChatTemplate.read(tmp_path, {})


def test_plain_chat() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert plain_chat(messages) == "User: Hello\nAssistant:"
    with pytest.raises(GenerationError, match="a role and a content"):
        plain_chat([{"content": "Hello"}])
