"""Conditions, near duplicates, diversity, expansion, reranking, and the adapters to other frameworks."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ingestion.pipeline import IngestOptions, ingest
from ingestion.sources import list_sources
from knowledge_base.configuration import RetrievalSettings
from knowledge_base.errors import EmbedderError, UsageError
from knowledge_base.home import KnowledgeBase
from rag.engine import Engine
from rag.filters import parse_conditions
from rag.reranker import CrossEncoderReranker
from rag.retriever import Retriever

MANUAL = """\
---
tags: [pumps, water]
weight: 9
released: 2026-03-01
---
# Pumps

The pump moves water uphill.

## Care

Oil the pump every spring.

Replace the seal of the pump when it leaks.

## Storage

Keep the pump dry in winter.
"""


@pytest.fixture
def engine(knowledge_base: KnowledgeBase, tmp_path: Path) -> Iterator[Engine]:
    (tmp_path / "pump.md").write_text(MANUAL)
    (tmp_path / "copy.md").write_text("# Copy\n\nThe pump moves the water uphill.\n")
    ingest(
        knowledge_base, list_sources([str(tmp_path / "pump.md"), str(tmp_path / "copy.md")]), IngestOptions()
    )
    opened = Engine.open(knowledge_base)
    yield opened
    opened.close()


Found = Callable[..., list[str]]


@pytest.fixture
def found(engine: Engine) -> Found:
    """Paths that a search finds under some conditions."""

    def search(*where: str, question: str = "pump") -> list[str]:
        return [context.path for context in engine.search(question, 20, parse_conditions(where))]

    return search


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        ("path=pump*", {"pump.md"}),
        ("path=api/*", {"api/limits.md"}),
        ("path~limit", {"api/limits.md"}),
        ("type=txt", {"team.txt"}),
        ("heading=Care", {"pump.md"}),
        ("title=Copy", {"copy.md"}),
        ("meta.tags=water", {"pump.md"}),
        ("meta.weight>=9", {"pump.md"}),
        ("meta.weight>10", set()),
        ("meta.released<2026-04-01", {"pump.md"}),
        ("page>=1", set()),
    ],
)
def test_only_what_meets_the_condition_is_ranked(found: Found, where: str, paths: set[str]) -> None:
    assert set(found(where)) == paths


def test_conditions_must_all_hold(found: Found) -> None:
    assert set(found("type=md", "path!=pump.md", "path!=copy.md")) == {
        "billing.md",
        "security.md",
        "install.md",
        "api/limits.md",
        "history.md",
    }


def test_a_date_means_what_changed_since_then(found: Found) -> None:
    now = datetime.now(UTC)
    everything = {*found()}
    assert set(found(f"changed>={(now - timedelta(days=400)).date()}")) == everything
    assert set(found(f"changed>={(now + timedelta(days=2)).date()}")) == set()
    assert set(found(f"changed<{(now + timedelta(days=2)).date()}")) == everything


@pytest.mark.parametrize(
    "where", ["", "pump", "colour=red", "path>a", "page=one", "changed>=soon", "changed=2026-01-01"]
)
def test_a_condition_that_means_nothing_is_refused(found: Found, where: str) -> None:
    with pytest.raises(UsageError):
        found(where)


def test_scores_do_not_depend_on_what_is_left_out(engine: Engine) -> None:
    query = engine.embedder.embed_query("How often is the pump oiled?")
    everything = engine.snapshot.select(np.ones(engine.snapshot.chunk_count, bool))
    retriever = engine.retriever
    assert retriever.search("How often is the pump oiled?", selection=everything) == retriever.search(
        "How often is the pump oiled?"
    )
    assert len(query) == engine.embedder.dimension


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_outside_a_selection_is_ever_returned(engine: Engine, data: st.DataObject) -> None:
    count = engine.snapshot.chunk_count
    rows = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    question = data.draw(st.sampled_from(["pump", "refund", "water uphill", "zxqv"]))
    allowed = {
        (engine.snapshot.paths[rank], page)
        for rank, page in zip(
            engine.snapshot.chunk_documents[rows], engine.snapshot.chunk_headings[rows], strict=True
        )
    }
    for context in engine.retriever.search(question, 20, selection=engine.snapshot.select(rows)):
        assert (context.path, "\n".join(context.heading)) in allowed


def with_settings(engine: Engine, **changes: object) -> Retriever:
    values = RetrievalSettings.model_validate({**engine.release.settings.retrieval.model_dump(), **changes})
    return Retriever(engine.snapshot, engine.embedder, values)


def test_a_near_duplicate_gives_its_place_to_another_passage(
    knowledge_base: KnowledgeBase, tmp_path: Path
) -> None:
    for name, word in (("a.md", "every"), ("b.md", "each")):
        (tmp_path / name).write_text(f"The pump must be oiled {word} spring, before the first rain falls.\n")
    ingest(knowledge_base, list_sources([str(tmp_path / "a.md"), str(tmp_path / "b.md")]), IngestOptions())
    engine = Engine.open(knowledge_base)
    plain = with_settings(engine).search("oil the pump in spring", 3)
    assert {"a.md", "b.md"} == {context.path for context in plain[:2]}
    distinct = with_settings(engine, duplicates=0.9).search("oil the pump in spring", 3)
    assert {"a.md", "b.md"} == {distinct[0].path, *distinct[0].also_in}
    assert len(distinct) == 3


def test_diversity_moves_an_unlike_passage_up(engine: Engine) -> None:
    plain = [c.chunk_id for c in with_settings(engine).search("The pump moves water uphill", 6)]
    spread = [
        c.chunk_id for c in with_settings(engine, diversity=0.6).search("The pump moves water uphill", 6)
    ]
    assert spread[0] == plain[0]
    assert spread != plain


def test_neighbours_and_sections_are_added_within_the_budget(engine: Engine) -> None:
    ((only,), (near,), (section,)) = (
        with_settings(engine, expand=expand).search("Oil the pump every spring", 1)
        for expand in ("none", "neighbours", "section")
    )
    text = engine.snapshot.document_text("pump.md")
    for context in (only, near, section):
        assert text[context.start : context.end] == context.text
    assert len(only.text) <= len(section.text)
    assert len(near.text) > len(only.text)
    assert "Keep the pump dry" not in section.text


def test_a_cross_encoder_decides_the_order(engine: Engine) -> None:
    class Backwards:
        def scores(self, question: str, texts: Sequence[str]) -> NDArray[np.float64]:
            return np.arange(len(texts), dtype=float)

    values = engine.release.settings.retrieval.model_copy(update={"rerank": 4})
    plain = [c.chunk_id for c in engine.search("pump", 4)]
    reranked = Retriever(engine.snapshot, engine.embedder, values, Backwards()).search("pump", 4)
    assert [c.chunk_id for c in reranked] == plain[::-1]


def test_a_real_cross_encoder_runs_and_a_missing_one_is_named(engine: Engine, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "pump", "water", "oil", "the", "dry"]
    folder = tmp_path / "tiny"
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    reranker = CrossEncoderReranker(str(folder))
    texts = ["oil the pump", "water", "dry dry dry"]
    scores = reranker.scores("pump", texts)
    assert scores.shape == (3,)
    assert np.allclose(reranker.scores("pump", texts[::-1]), scores[::-1])
    with pytest.raises(EmbedderError, match="nowhere"):
        CrossEncoderReranker(str(tmp_path / "nowhere"))


def test_llama_index_gets_the_same_passages(engine: Engine) -> None:
    from rag.llama_index_adapter import PlumblineRetriever

    nodes = PlumblineRetriever(engine, top_k=3, where=["path=pump.md"]).retrieve("oil the pump")
    contexts = engine.search("oil the pump", 3, parse_conditions(["path=pump.md"]))
    assert [(n.node.node_id, n.node.text, n.score) for n in nodes] == [
        (c.chunk_id, c.text, c.score) for c in contexts
    ]


def test_an_engine_as_a_runnable_answers(engine: Engine) -> None:
    from rag.langchain_adapter import as_runnable

    answer = as_runnable(engine).invoke("How often is the pump oiled?")
    assert answer.citations[0].path == "pump.md"
