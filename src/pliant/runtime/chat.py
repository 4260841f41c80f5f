"""`ChatTemplate`: from a list of messages to the text a chat model was trained on."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pliant.errors import CheckpointError, GenerationError
from pliant.runtime.side_file import is_there

if TYPE_CHECKING:
    import jinja2

#: One message: `role` ("system", "user", "assistant"), `content`, and what else a template reads.
Message = Mapping[str, object]

_NO_TEMPLATE = (
    "This model has no chat template, so it cannot be chatted with. Use `pliant run` to continue a "
    "text, or put the template of the model's family into chat_template.jinja."
)

#: What a template of a stranger may raise when it is compiled or rendered.
_FAILURES = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
             MemoryError)  # fmt: skip


class ChatTemplate:
    """The chat templates of one model by name; `default` and `tool_use` have a meaning.

    Templates come with a model from anywhere, so they run in jinja2's sandbox with bounded loops
    and sizes (`template_sandbox.py`).
    """

    def __init__(self, templates: Mapping[str, str]) -> None:
        self.templates = dict(templates)
        self._compiled: dict[str, jinja2.Template] = {}

    @classmethod
    def read(
        cls, folder: Path, config: Mapping[str, Any], listed: Container[str] | None = None
    ) -> ChatTemplate | None:
        """The templates in a folder, or None where there are none.

        Files (`chat_template.jinja`, `additional_chat_templates/NAME.jinja`) go before the
        `chat_template` of `tokenizer_config.json`, which is a text or a list of named texts. With
        `listed` only files of these names are read.
        """
        paths = {"default": folder / "chat_template.jinja"}
        # Names that are listed are of no folder within.
        more = (folder / "additional_chat_templates").glob("*.jinja") if listed is None else ()
        for path in sorted(more):
            paths[path.stem] = path
        try:
            files = {
                name: path.read_text("utf-8")
                for name, path in paths.items()
                if is_there(path, listed)
            }
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"A chat template in {folder} cannot be read: {error}."
            ) from error
        if files:
            return cls(files)
        match config.get("chat_template"):
            case str(text):
                return cls({"default": text})
            case list(entries):
                return cls({entry["name"]: entry["template"] for entry in map(_checked, entries)})
            case dict(named):
                return cls({str(name): str(text) for name, text in named.items()})
        return None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The conversation as text.

        `variables` are the names the template may use besides `messages`, `tools`, `documents`
        and `add_generation_prompt`: special tokens such as `bos_token`, and options of the model.
        Raises `GenerationError` where the template refuses, fails or passes the sandbox's bounds.
        """
        from jinja2 import TemplateError

        if not messages:
            raise GenerationError("The conversation is empty; give at least one message.")
        compiled = self._compile(
            "tool_use" if tools and "tool_use" in self.templates else "default"
        )
        conversation = [
            {key: value for key, value in message.items() if value is not None}
            for message in _plain(messages)
        ]
        names = dict(variables or {})
        names.update(
            messages=conversation,
            tools=None if tools is None else _plain(tools),
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )
        try:
            compiled.environment.reset()  # type: ignore[attr-defined]
            return compiled.render(names)
        except (TemplateError, *_FAILURES) as error:
            raise _refusal(error) from error

    def _compile(self, name: str) -> jinja2.Template:
        from jinja2 import TemplateError

        from pliant.runtime.template_sandbox import TemplateSandbox

        if not self.templates:
            raise GenerationError(_NO_TEMPLATE)
        if name not in self.templates:
            raise GenerationError(
                f"This model has the chat templates {sorted(self.templates)} and none named "
                f"{name!r}; put the one to use into chat_template.jinja."
            )
        if name not in self._compiled:
            try:
                self._compiled[name] = TemplateSandbox().from_string(self.templates[name])
            except (TemplateError, *_FAILURES, SyntaxError) as error:
                raise GenerationError(
                    f"The chat template {name!r} is not valid jinja2: {error}. "
                    "Put a working one into chat_template.jinja."
                ) from error
        return self._compiled[name]


def plain_chat(messages: Sequence[Message]) -> str:
    """A conversation as plain text for models that have no chat template.

    Each message is a line `Role: content`, and the text ends with `Assistant:`. A base model was
    not trained on it, so this is for looking, not for quality.
    """
    if not messages or not all("role" in m and "content" in m for m in messages):
        raise GenerationError("A conversation is one or more messages with a role and a content.")
    lines = [f"{str(m['role']).capitalize()}: {m['content']}\n" for m in messages]
    return "".join(lines) + "Assistant:"


def _checked(entry: object) -> dict[str, str]:
    """One entry of a list of named templates."""
    match entry:
        case {"name": str(name), "template": str(template)}:
            return {"name": name, "template": template}
    raise CheckpointError(
        "chat_template in tokenizer_config.json is a list whose entries need a name and a "
        f"template; one is {str(entry)[:80]!r}."
    )


def _plain(items: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
    """A copy made of JSON values only, so that a template meets no object with methods."""
    try:
        copied = json.loads(json.dumps([dict(item) for item in items]))
    except (TypeError, ValueError, RecursionError) as error:
        raise GenerationError(
            f"A conversation is a list of messages of texts, numbers, lists and objects: {error}."
        ) from error
    return list(copied)


def _refusal(error: Exception) -> GenerationError:
    """The error that tells a user why there is no prompt."""
    from jinja2.exceptions import SecurityError

    if isinstance(error, SecurityError | RecursionError | MemoryError):
        reason = str(error) or type(error).__name__
        return GenerationError(
            f"The chat template was stopped: {reason}. It is not safe to run; put a template that "
            "you trust into chat_template.jinja."
        )
    return GenerationError(
        f"The chat template refuses this conversation: {error}. "
        "Check the roles and their order, or put another template into chat_template.jinja."
    )
