"""Retrieval and answering over a real release."""

from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.documents import sha256_hex
from knowledge_base.home import KnowledgeBase
from knowledge_base.sentences import split_sentences
from rag.answer_log import AnswerLog
from rag.chain import PlumblineRetriever, to_context
from rag.engine import Engine
from rag.retriever import Retriever


def test_an_answer_quotes_the_sentence_that_answers(knowledge_base: KnowledgeBase) -> None:
    answer = Engine.open(knowledge_base).ask("What is the default port of the server?")
    assert answer.answer.startswith("The default port of the server is 8420. [1]")
    assert answer.citations[0].path == "install.md"


def test_every_citation_verifies(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    for question in (
        "Who founded the company?",
        "How fast are refunds paid?",
        "What about rate limits per key?",
    ):
        answer = engine.ask(question)
        assert answer.abstained == (not answer.citations)
        for citation in answer.citations:
            text = engine.snapshot.document_text(citation.path)
            assert text[citation.start : citation.end] == citation.quote
            assert sha256_hex(citation.quote.encode()) == citation.sha256


def test_what_nothing_supports_is_not_answered(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    for question in ("How far away is the moon?", "Who painted the Mona Lisa?", "???", "zxqv"):
        assert engine.ask(question).abstained, question


def test_an_empty_release_abstains(empty_kb: KnowledgeBase) -> None:
    answer = Engine.open(empty_kb).ask("Is anybody there?")
    assert answer.abstained and not answer.contexts


def test_each_mode_finds_the_document(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    for mode in ("hybrid", "dense", "lexical"):
        settings = engine.release.settings.retrieval.model_copy(update={"mode": mode})
        found = Retriever(engine.snapshot, engine.embedder, settings).search("default port of the server")
        assert found[0].path == "install.md", mode


def test_the_langchain_retriever_gives_the_same_passages(knowledge_base: KnowledgeBase) -> None:
    engine = Engine.open(knowledge_base)
    documents = PlumblineRetriever(retriever=engine.retriever).invoke("refund")
    assert [to_context(document) for document in documents] == engine.search("refund")


def test_answers_come_back_from_the_log_newest_first(knowledge_base: KnowledgeBase) -> None:
    log = AnswerLog("sqlite://")
    engine = Engine.open(knowledge_base)
    answers = [engine.ask(question) for question in ("Who founded the company?", "How are passwords hashed?")]
    for answer in answers:
        log.append(answer)
    assert log.recent(10) == answers[::-1]
    log.close()


@given(st.text(max_size=300))
def test_sentences_are_trimmed_spans_in_order(text: str) -> None:
    spans = split_sentences(text)
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans)
    assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())
