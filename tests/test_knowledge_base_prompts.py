"""Prompt files: what they may hold, and that nothing unusable is committed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.configuration import Settings, parse_settings
from knowledge_base.errors import SettingsError
from knowledge_base.home import KnowledgeBase, default_prompts
from knowledge_base.prompts import VARIABLES, check_prompts, parse_prompt, parse_prompts
from knowledge_base.release import hash_prompts

HEAD = "---\nname: answer\n---\n"
WITH_MODEL = parse_settings('[answer]\nmodel = "openai:x"\n')


def test_the_prompts_of_a_new_knowledge_base_are_valid_and_complete() -> None:
    assert set(parse_prompts(default_prompts())) == set(VARIABLES)
    check_prompts(
        default_prompts(), parse_settings('[answer]\nmodel = "openai:x"\n[retrieval]\nqueries = 3\n')
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no front matter {question} {contexts}", "front matter"),
        (HEAD + "Only {question}", r"missing variable \{contexts\}"),
        (HEAD + "{question} {contexts} {mood}", r"unknown variable \{mood\}"),
        ("---\nname: other\n---\n{question} {contexts}", "'other'"),
        ("---\nname: answer\nmood: sad\n---\n{question} {contexts}", "mood"),
        ("---\nname: [\n---\n{question} {contexts}", "YAML"),
        ("---\nname: answer\nexamples:\n  - question: a\n---\n{question} {contexts}", "example 1"),
    ],
)
def test_a_prompt_that_could_not_be_used_is_refused(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse_prompt("answer.md", text)


def test_a_model_needs_its_prompts() -> None:
    without = {name: text for name, text in default_prompts().items() if name != "repair.md"}
    check_prompts(without, Settings())
    with pytest.raises(SettingsError, match="repair.md is missing"):
        check_prompts(without, WITH_MODEL)


def test_an_invalid_prompt_is_not_committed(knowledge_base: KnowledgeBase, sources: Path) -> None:
    before = knowledge_base.repository.resolve("main")
    (knowledge_base.root / "prompts" / "answer.md").write_text(HEAD + "{question}")
    with pytest.raises(SettingsError):
        ingest(knowledge_base, list_sources([str(sources)]), IngestOptions())
    assert knowledge_base.repository.resolve("main") == before


def test_examples_become_earlier_turns() -> None:
    text = (
        "---\nname: answer\nsystem: Be brief.\nexamples:\n"
        "  - question: How deep?\n    contexts: It is nine feet deep.\n    reply: Nine feet [1].\n"
        "---\n{contexts}\nQ: {question}\n"
    )
    messages = parse_prompt("answer.md", text).render(question="How wide?", contexts="It is wide.")
    assert messages == [
        ("system", "Be brief."),
        ("user", "It is nine feet deep.\nQ: How deep?"),
        ("assistant", "Nine feet [1]."),
        ("user", "It is wide.\nQ: How wide?"),
    ]


@given(st.text(alphabet="{}questioncontexts $\\\n"), st.text(alphabet="{}question\\"))
def test_what_fills_a_variable_is_never_read_as_one(contexts: str, question: str) -> None:
    prompt = parse_prompt("answer.md", HEAD + "<{contexts}|{question}>")
    ((_, text),) = prompt.render(contexts=contexts, question=question)
    assert text == f"<{contexts.strip()}|{question.strip()}>"


def test_the_judges_prompt_decides_no_answer() -> None:
    prompts = default_prompts()
    assert hash_prompts(prompts) == hash_prompts({**prompts, "judge.md": "other"})
    assert hash_prompts(prompts) != hash_prompts({**prompts, "answer.md": "other"})
