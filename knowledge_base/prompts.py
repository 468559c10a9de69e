"""Prompts: Markdown files with front matter, versioned with the release, checked before they are committed.

The front matter names the prompt, may hold a `system` message, and few-shot `examples` as data; the body is
the user's message, in which `{variable}` stands for what is asked. Other braces are text.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from knowledge_base.configuration import EXTRACTIVE, Settings
from knowledge_base.errors import SettingsError
from knowledge_base.values import Frozen

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)---[ \t]*\n(.*)\Z", re.DOTALL)
_VARIABLE = re.compile(r"\{([a-z_]+)\}")

VARIABLES: Mapping[str, frozenset[str]] = {
    "answer": frozenset({"question", "contexts"}),
    "repair": frozenset({"question", "contexts", "sentences"}),
    "condense": frozenset({"question", "history"}),
    "queries": frozenset({"question", "count"}),
    "judge": frozenset(),
}
"""Every prompt there is, with the variables that its text must use, all of them and no others."""

NO_ANSWER = "NO ANSWER"
"""What a model replies when the passages do not answer."""


class Prompt(Frozen):
    """One prompt. An example gives a value to each variable of the template, and the model's `reply`."""

    name: str
    description: str = ""
    system: str = ""
    examples: tuple[dict[str, str], ...] = ()
    template: str

    def render(self, **values: str) -> list[tuple[str, str]]:
        """The messages as (role, text): system, examples in turn, then the question itself."""
        messages = [("system", self.system.strip())] if self.system.strip() else []
        for example in self.examples:
            messages += [("user", _fill(self.template, example)), ("assistant", example["reply"].strip())]
        return [*messages, ("user", _fill(self.template, values))]


def parse_prompt(file_name: str, text: str) -> Prompt:
    """A prompt from its file.

    Raises:
        SettingsError: No front matter, an unknown key, or a variable that is missing or unknown.
    """
    found = _FRONT_MATTER.match(text)
    if not found:
        raise SettingsError(
            f"prompts/{file_name} has no front matter.",
            hint="Begin with a line ---, then name: and description:, then a line ---.",
        )
    try:
        facts = yaml.safe_load(found[1])
        if not isinstance(facts, dict):
            raise SettingsError(f"prompts/{file_name}: the front matter holds no keys.")
        prompt = Prompt.model_validate({**facts, "template": found[2].strip()})
    except yaml.YAMLError as error:
        raise SettingsError(
            f"prompts/{file_name}: the front matter is not valid YAML: {_first_line(error)}."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"prompts/{file_name}: {key}: {first['msg']}.", hint="See docs/answers.md."
        ) from error
    _check(file_name, prompt)
    return prompt


def parse_prompts(files: Mapping[str, str]) -> dict[str, Prompt]:
    """The prompts of a release or a working copy, by name. Raises SettingsError."""
    return {
        name.removesuffix(".md"): parse_prompt(name, text)
        for name, text in sorted(files.items())
        if name.endswith(".md")
    }


def check_prompts(files: Mapping[str, str], settings: Settings) -> None:
    """Refuse prompts that could not be used when a question comes.

    Raises:
        SettingsError: One is not valid, or one that the settings need is missing.
    """
    there = parse_prompts(files)
    needed = ["answer", "repair", "condense"] if settings.answer.model != EXTRACTIVE else []
    if settings.retrieval.queries > 1:
        needed.append("queries")
    for name in needed:
        if name not in there:
            raise SettingsError(
                f"prompts/{name}.md is missing, and the settings need it.",
                hint=f"`rag prompt show {name} --default > prompts/{name}.md` writes the one to begin with.",
            )


def _check(file_name: str, prompt: Prompt) -> None:
    known = VARIABLES.get(prompt.name)
    if known is None or file_name != f"{prompt.name}.md":
        raise SettingsError(
            f"prompts/{file_name}: its name is {prompt.name!r}.",
            hint=f"A prompt's file is named after it; there are {', '.join(VARIABLES)}.",
        )
    used = set(_VARIABLE.findall(prompt.template))
    for what, names in (("unknown", used - known), ("missing", known - used)):
        if names:
            raise SettingsError(
                f"prompts/{file_name}: {what} variable {{{min(names)}}}.",
                hint=f"It must use {', '.join(f'{{{name}}}' for name in sorted(known)) or 'no variable'}.",
            )
    for number, example in enumerate(prompt.examples, 1):
        if set(example) != known | {"reply"}:
            raise SettingsError(
                f"prompts/{file_name}: example {number} has the keys {', '.join(sorted(example))}.",
                hint=f"It must have {', '.join(sorted(known | {'reply'}))}.",
            )


def _fill(template: str, values: Mapping[str, str]) -> str:
    # In one pass: what a passage says in braces must not be taken for a variable.
    return _VARIABLE.sub(lambda found: values[found[1]].strip() if found[1] in values else found[0], template)


def _first_line(error: Any) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
