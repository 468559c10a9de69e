"""Any sequence of commands leaves every branch with the documents a plain dictionary would have.

Hypothesis makes up the sequences; the knowledge base, git, Chroma and the embedder are real. The model
is what a person would keep on paper: of each commit its parents and `{path: text}`.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from api.settings import read_environment
from ingestion.chunking import Chunker
from ingestion.pipeline import IngestOptions, ingest
from ingestion.readers import extract
from ingestion.sources import list_sources
from knowledge_base.configuration import ChunkerSettings, EmbedderSettings
from knowledge_base.documents import Chunk, Document
from knowledge_base.embedders import Embedder, load_embedder
from knowledge_base.errors import (
    CheckFailedError,
    ExpiredError,
    MergeConflictError,
    NoChangesError,
    OutdatedError,
)
from knowledge_base.home import KnowledgeBase
from knowledge_base.integrity import fsck
from knowledge_base.lifecycle import promote
from knowledge_base.merging import merge
from knowledge_base.release import DocumentChanges
from knowledge_base.republishing import compact, rollback
from knowledge_base.retention import Retention, gc
from knowledge_base.snapshot import Snapshot
from knowledge_base.version_store import Strategy
from rag.engine import Engine

Documents = Mapping[str, str]

PATHS = ("a.md", "b.md", "c/d.md", "c/e.txt", "ä ö.md", "z.txt")
SIDE_BRANCHES = ("draft", "spare")
# Repeated by many documents, so that one stored text serves several and outlives some of them.
COMMON = (
    "All staff read this notice before they start.",
    "Invoices are sent on the first day of each month.",
    "The default port of the server is 8420.",
)
QUESTIONS = ("When are invoices sent?", "default port")

# A section is a common sentence, or None for one with a word that nothing else ever has.
sections = st.lists(st.sampled_from((None, None, *COMMON)), min_size=1, max_size=3)
edits = st.dictionaries(st.sampled_from(PATHS), sections, max_size=3)
some_paths = st.sets(st.sampled_from(PATHS), max_size=2)
branches = st.sampled_from(("main", *SIDE_BRANCHES))
side_branches = st.sampled_from(SIDE_BRANCHES)
strategies: st.SearchStrategy[Strategy | None] = st.sampled_from((None, "source-wins", "dest-wins"))
numbers = st.integers(0, 1000)


@cache
def embedder() -> Embedder:
    return load_embedder(EmbedderSettings(), read_environment().cache / "models")


class QuickBase(KnowledgeBase):
    """Loads the real embedder once for all examples: that takes longer than most of them."""

    def embedder(self, settings: EmbedderSettings) -> Embedder:
        return embedder()


@cache
def vector(text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """What the embedder gives for one text alone."""
    found: np.ndarray[tuple[int], np.dtype[np.float32]] = embedder().embed_documents([text])[0]
    return found


@cache
def split(path: str, text: str) -> tuple[Chunk, ...]:
    """The chunks that a document must have."""
    chunker = Chunker(ChunkerSettings(), embedder().tokenize, limit=embedder().max_tokens - 2)
    found = extract(path, text.encode())
    return tuple(chunker.split(Document(path, "", 0, found.title, found.text, found.sections)))


def ranking(knowledge_base: KnowledgeBase, ref: str) -> list[list[tuple[str, float]]]:
    engine = Engine.open(knowledge_base, ref)
    try:
        return [[(found.chunk_id, found.score) for found in engine.search(q, 20)] for q in QUESTIONS]
    finally:
        engine.close()


def same(documents: DocumentChanges, before: Documents, after: Documents) -> bool:
    """Whether a report of changes is what happened; a rename is an addition and a deletion."""
    gone = {*documents.deleted, *(old for old, _ in documents.renamed)}
    new = {*documents.added, *(path for _, path in documents.renamed)}
    changed = {path for path in before.keys() & after.keys() if before[path] != after[path]}
    return (gone, new, set(documents.changed)) == (
        before.keys() - after.keys(),
        after.keys() - before.keys(),
        changed,
    )


@dataclass(frozen=True)
class Version:
    """The model of one commit; `restores` is the commit whose content a rollback or compaction has."""

    parents: tuple[str, ...]
    documents: Documents
    restores: str = ""


class Versions(RuleBasedStateMachine):
    """Commands on one knowledge base, each done to the model too."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="plumbline-test-"))
        self.models = read_environment().cache / "models"
        QuickBase.create(self.folder / "kb", self.models)
        self.kb = QuickBase.open(self.folder / "kb", self.models)
        self.branches = {"main": self.kb.repository.resolve("main")}
        self.root = self.branches["main"]
        self.versions = {self.root: Version((), {})}
        self.expired: set[str] = set()
        self.words = 0
        self.checked: set[str] = set()

    # -- the model -----------------------------------------------------------------------------

    def documents(self, branch: str) -> Documents:
        return self.versions[self.branches[branch]].documents

    def line(self, branch: str) -> list[str]:
        """The releases of a branch, newest first."""
        found = [self.branches[branch]]
        while parents := self.versions[found[-1]].parents:
            found.append(parents[0])
        return found

    def ancestors(self, commit: str) -> set[str]:
        found, waiting = set[str](), [commit]
        while waiting:
            commit = waiting.pop()
            if commit not in found:
                found.add(commit)
                waiting += self.versions[commit].parents
        return found

    def first_parents(self, commit: str) -> list[str]:
        line = [commit]
        while parents := self.versions[line[-1]].parents:
            line.append(parents[0])
        return line

    def release_before(self, commit: str) -> str | None:
        """The release before the one whose content a commit has; None when nothing reaches it any more."""
        while restored := self.versions[commit].restores:
            if restored not in self.versions:
                return None
            commit = restored
        parents = self.versions[commit].parents
        return parents[0] if parents else self.root

    def merge_base(self, one: str, other: str) -> str:
        """git's choice, which must be one of the best: after merges both ways there may be several."""
        common = self.ancestors(one) & self.ancestors(other)
        best = common - {old for commit in common for old in self.ancestors(commit) - {commit}}
        base = self.kb.repository.find_merge_base(one, other)
        assert base in best
        return base

    def moved(self, branch: str, documents: Documents, *others: str, restores: str = "") -> None:
        """`branch` has a new commit with those documents."""
        commit = self.kb.repository.resolve(branch)
        assert commit not in self.versions
        self.versions[commit] = Version((self.branches[branch], *others), documents, restores)
        self.branches[branch] = commit

    def text(self, parts: list[str | None]) -> str:
        made = []
        for number, part in enumerate(parts):
            if part is None:
                self.words += 1
                part = f"The mark of this section is mark{self.words:04d}."
            made.append(f"## Part {number}\n\n{part}\n")
        return "\n".join(made)

    # -- commands ------------------------------------------------------------------------------

    @initialize(new=st.dictionaries(st.sampled_from(PATHS), sections, min_size=2, max_size=5))
    def first_release(self, new: dict[str, list[str | None]]) -> None:
        self.ingest("main", {path: self.text(parts) for path, parts in new.items()})

    @rule(branch=branches, new=edits, gone=some_paths, move=st.none() | st.tuples(numbers, numbers))
    def change(
        self, branch: str, new: dict[str, list[str | None]], gone: set[str], move: tuple[int, int] | None
    ) -> None:
        if branch not in self.branches:
            self.branches[branch] = self.branches["main"]  # ingest makes it, even when nothing changes
        wanted = {path: text for path, text in self.documents(branch).items() if path not in gone}
        wanted |= {path: self.text(parts) for path, parts in new.items()}
        if move and wanted:
            old = sorted(wanted)[move[0] % len(wanted)]
            wanted[PATHS[move[1] % len(PATHS)]] = wanted.pop(old)
        if wanted:
            self.ingest(branch, wanted)

    def ingest(self, branch: str, wanted: Documents) -> None:
        before = self.documents(branch)
        sources = self.folder / "sources"
        shutil.rmtree(sources, ignore_errors=True)
        for path, text in wanted.items():
            (sources / path).parent.mkdir(parents=True, exist_ok=True)
            (sources / path).write_text(text, encoding="utf-8")
        result = ingest(self.kb, list_sources([str(sources)]), IngestOptions(branch=branch, prune=True))
        assert same(result.documents, before, wanted) and not result.failed
        assert result.published == (before != wanted)
        if result.published:
            event("ingest")
            self.moved(branch, wanted)

    @rule(branch=side_branches, number=numbers)
    def create_branch(self, branch: str, number: int) -> None:
        if branch in self.branches:
            return
        # Mostly from a head, sometimes from anywhere.
        places = [*self.branches.values()] * 3 + list(self.versions)
        source = places[number % len(places)]
        try:
            self.kb.repository.create_branch(branch, source)
        except ExpiredError:
            assert source in self.expired
            return
        assert source not in self.expired
        self.branches[branch] = source

    @rule(branch=side_branches)
    def delete_branch(self, branch: str) -> None:
        if branch in self.branches:
            self.kb.repository.delete_branch(branch)
            del self.branches[branch]
            self.forget()

    def forget(self) -> None:
        """What nothing reaches is no longer promised."""
        reached = {old for head in self.branches.values() for old in self.ancestors(head)}
        self.versions = {commit: self.versions[commit] for commit in self.versions if commit in reached}

    @rule(source=branches, branch=branches, strategy=strategies)
    def merge(self, source: str, branch: str, strategy: Strategy | None) -> None:
        if not {source, branch} <= self.branches.keys():
            return
        theirs, head = self.branches[source], self.branches[branch]
        base = self.merge_base(theirs, head)
        old, new, own = (self.versions[commit].documents for commit in (base, theirs, head))
        wanted, conflicts = merged(old, new, own, strategy)
        try:
            landing = merge(self.kb, source, branch, strategy=strategy)
        except MergeConflictError as error:
            event("merge: conflict")
            assert strategy is None and error.paths == sorted(f"documents/{path}" for path in conflicts)
        except NoChangesError:
            assert old == new
        else:
            event(f"merge: {strategy or 'clean'}, conflicts: {bool(conflicts)}")
            assert base != theirs and not (conflicts and strategy is None)
            assert landing.published and same(landing.documents, own, wanted)
            self.moved(branch, wanted, theirs)

    @rule(source=side_branches)
    def promote(self, source: str) -> None:
        if source not in self.branches:
            return
        theirs, head = self.branches[source], self.branches["main"]
        base = self.merge_base(theirs, head)
        before, wanted = self.documents("main"), self.documents(source)
        try:
            landing = promote(self.kb, source)
        except NoChangesError:
            assert base == theirs or wanted == before
        except OutdatedError:
            event("promote: outdated")
            assert base not in (head, theirs)
        else:
            event("promote")
            assert base == head and same(landing.documents, before, wanted)
            self.moved("main", wanted, theirs)

    @rule(branch=branches, number=st.none() | numbers)
    def rollback(self, branch: str, number: int | None) -> None:
        if branch not in self.branches:
            return
        ref = None if number is None else list(self.versions)[number % len(self.versions)]
        target = ref or self.release_before(self.branches[branch])
        if target is None:
            return
        before, wanted = self.documents(branch), self.versions[target].documents
        try:
            rollback(self.kb, ref, branch=branch)
        except NoChangesError:
            assert target == self.root or wanted == before
        except ExpiredError:
            assert target in self.expired
        except CheckFailedError:
            event("rollback: never published")
            assert branch == "main" and target not in self.line("main")
        else:
            event("rollback")
            assert target != self.root
            assert branch != "main" or target in self.ancestors(self.branches["main"])
            self.moved(branch, wanted, restores=target)

    @rule(branch=branches, everything=st.booleans())
    def compact(self, branch: str, everything: bool) -> None:
        if branch not in self.branches:
            return
        before = ranking(self.kb, branch)
        try:
            compact(self.kb, branch, everything=everything)
        except NoChangesError:
            return
        event("compact")
        self.moved(branch, self.documents(branch), restores=self.branches[branch])
        assert ranking(self.kb, branch) == before
        if everything:
            assert len(self.kb.release(branch).manifest.segments) <= 1

    @rule(keep_last=st.sampled_from((None, 1, 2)))
    def gc(self, keep_last: int | None) -> None:
        before = {branch: ranking(self.kb, branch) for branch in self.branches}
        report = gc(self.kb, Retention(keep_last=keep_last), dry_run=False)
        event(f"gc: keep_last {keep_last}, freed: {report.bytes > 0}")
        heads = set(self.branches.values())
        kept = (
            heads
            | {self.root}
            | {old for head in heads for old in self.first_parents(head)[: keep_last or 0]}
        )
        gone = set(self.versions) - kept if keep_last else set[str]()
        assert report.expired == tuple(sorted(report.expired)) and gone <= set(report.expired)
        assert not kept & set(report.expired)
        self.expired = (self.expired | gone) - heads
        assert {branch: ranking(self.kb, branch) for branch in self.branches} == before
        assert (problems := list(fsck(self.kb))) == [], problems

    @rule(lose_caches=st.booleans())
    def restart(self, lose_caches: bool) -> None:
        before = {branch: ranking(self.kb, branch) for branch in self.branches}
        if lose_caches:
            shutil.rmtree(self.kb.cache)
        self.kb = QuickBase.open(self.folder / "kb", self.models)
        assert {branch: ranking(self.kb, branch) for branch in self.branches} == before

    @precondition(lambda self: len(self.versions) > len(self.branches) + 1)
    @rule(number=numbers)
    def look_back(self, number: int) -> None:
        """Releases of the past that are retained still answer; the others say that they expired."""
        commit = list(self.versions)[number % len(self.versions)]
        if commit == self.root:
            return
        try:
            self.check(commit)
        except ExpiredError:
            assert commit in self.expired
        event(f"look back, expired: {commit in self.expired}")

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def heads_are_what_the_model_says(self) -> None:
        found = {branch.id: branch.commit_id for branch in self.kb.repository.list_branches()}
        assert found == self.branches
        for commit in set(found.values()) - self.checked - {self.root}:
            self.check(commit)
            self.checked.add(commit)

    def check(self, commit: str) -> None:
        documents = self.versions[commit].documents
        engine = Engine.open(self.kb, commit)
        try:
            check_content(engine.snapshot, documents)
            check_search(engine, documents, self.words)
        finally:
            engine.close()

    def teardown(self) -> None:
        try:
            assert (problems := list(fsck(self.kb))) == [], problems
            if documents := self.documents("main"):
                # However it came about, a release answers as one that was ingested in one go.
                found = ranking(self.kb, "main")
                self.folder = self.folder / "fresh"
                self.kb = QuickBase.create(self.folder / "kb", self.models)
                self.branches = {"main": self.kb.repository.resolve("main")}
                self.versions = {self.branches["main"]: Version((), {})}
                self.ingest("main", documents)
                assert ranking(self.kb, "main") == found
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def merged(
    old: Documents, new: Documents, own: Documents, strategy: Strategy | None
) -> tuple[dict[str, str], set[str]]:
    """Documents after `own` took in what changed from `old` to `new`, and what both had changed."""
    wanted, conflicts = {}, set()
    for path in {*old, *new, *own}:
        was, theirs, ours = old.get(path), new.get(path), own.get(path)
        chosen = ours if theirs == was else theirs
        if len({was, theirs, ours}) == 3:
            conflicts.add(path)
            chosen = theirs if strategy == "source-wins" else ours
        if chosen is not None:
            wanted[path] = chosen
    return wanted, conflicts


def check_content(snapshot: Snapshot, documents: Documents) -> None:
    """Documents, chunks and vectors are those that the texts must have."""
    assert set(snapshot.paths) == set(documents)
    expected = {chunk.id for path, text in documents.items() for chunk in split(path, text)}
    assert snapshot.chunk_ids() == expected
    assert (snapshot.release.manifest.documents, snapshot.release.manifest.chunks) == (
        len(documents),
        snapshot.chunk_count,
    )
    for path, text in documents.items():
        assert snapshot.document_text(path) == extract(path, text.encode()).text
    for passage in np.flatnonzero(snapshot.live):
        chunks = snapshot.chunks_of(int(passage))
        assert chunks
        for chunk in chunks:
            assert snapshot.document_text(chunk.path)[chunk.start : chunk.end] == chunk.text
        score = snapshot.dense_scores(vector(chunks[0].text), np.array([passage]))
        assert float(score[0]) > 0.99


def check_search(engine: Engine, documents: Documents, words: int) -> None:
    """A word finds the documents that have it, and nothing finds text that is gone."""
    everything = "\n".join(documents.values())
    for number in range(max(1, words - 12), words + 1):
        word = f"mark{number:04d}"
        found = [context for context in engine.search(word, 20) if word in context.text]
        assert {path for context in found for path in (context.path, *context.also_in)} == {
            path for path, text in documents.items() if word in text
        }
    for question in QUESTIONS:
        for context in engine.search(question, 20):
            assert context.text in documents[context.path] and context.text in everything


def run(examples: int, steps: int) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Versions, settings=chosen)


def test_any_sequence_of_commands_gives_what_a_dictionary_would() -> None:
    run(examples=10, steps=20)


@pytest.mark.slow
def test_many_long_sequences_of_commands_give_what_a_dictionary_would() -> None:
    run(examples=150, steps=60)
