"""Merging a branch into another, index included: nothing is embedded, no segment is rewritten."""

from knowledge_base.errors import IncompatibleError, MergeConflictError, NoChangesError
from knowledge_base.home import MAIN, KnowledgeBase
from knowledge_base.index import IndexDraft, write_index
from knowledge_base.lifecycle import DRAFT, Gate, Landing, describe_and_land, work_branch
from knowledge_base.release import DOCUMENTS_PREFIX, INDEX_PREFIX, load_release
from knowledge_base.version_store import Repository, Strategy


def merge(
    knowledge_base: KnowledgeBase,
    source: str,
    branch: str = MAIN,
    *,
    strategy: Strategy | None = None,
    gate: Gate | None = None,
    message: str | None = None,
) -> Landing:
    """Bring what `source` changed into `branch`: documents, settings, prompts, and their index.

    A document changed on one side comes with the chunks and vectors it has there: nothing is embedded.

    Raises:
        MergeConflictError: Both sides changed the same files and no `strategy` says who wins.
        IncompatibleError: The two were chunked or embedded differently.
        NoChangesError: `branch` holds all of `source` already.
        NotFoundError: No such branch or ref.
        LockedError: Another command is writing.
    """
    repository = knowledge_base.repository
    with knowledge_base.writing():
        head = repository.get_branch(branch).commit_id
        theirs = repository.resolve(source)
        base = repository.find_merge_base(theirs, head)
        if base == theirs:
            hint = f"If it was rolled back since, `rag rollback {source}` brings it back."
            if source == branch:
                hint = (
                    f"`rag merge BRANCH` takes one into main, `rag merge {source} --into BRANCH` the reverse."
                )
            raise NoChangesError(f"The history of {branch!r} holds {source!r} already.", hint=hint)
        _refuse_conflicts(repository, head, theirs, strategy)
        text = message or f"Merge {source} into {branch}"
        with work_branch(repository, head) as work:
            # The index conflicts by nature and is put together below.
            repository.merge(
                theirs,
                work,
                message=text,
                strategy=strategy or "dest-wins",
                metadata={DRAFT: "index follows"} if base != head else {},
            )
            if base != head:
                _merge_index(knowledge_base, head, theirs, work)
            if not any(repository.diff(head, work, type="two_dot")):
                raise NoChangesError(
                    f"{source!r} brings nothing that {branch!r} lacks.", hint="Nothing was changed."
                )
            return describe_and_land(knowledge_base, work, branch, head, text, gate)


def _refuse_conflicts(repository: Repository, head: str, theirs: str, strategy: Strategy | None) -> None:
    paths = [
        change.path
        for change in repository.diff(head, theirs)
        if change.type == "conflict" and not change.path.startswith(INDEX_PREFIX)
    ]
    if paths and strategy is None:
        raise MergeConflictError(paths)


def _merge_index(knowledge_base: KnowledgeBase, head: str, theirs: str, work: str) -> None:
    """Give the merged tree its index: each document from the side whose version it holds."""
    repository = knowledge_base.repository
    ours, other = knowledge_base.snapshot(head), knowledge_base.snapshot(theirs)
    mine, yours = ours.release.manifest, other.release.manifest
    if mine.segments and yours.segments and (mine.embedder, mine.chunker) != (yours.embedder, yours.chunker):
        raise IncompatibleError(
            "The two sides were chunked or embedded differently.",
            hint="Give both the same plumbline.toml: `rag ingest --branch NAME` embeds a branch anew from "
            "its stored documents. Then merge.",
        )
    merged = load_release(repository, work)
    transaction = repository.transact(work, message="Index of the merge", allow_empty=True)
    with transaction:
        place = {path: ours.segment_of(path) for path in ours.paths}
        for change in repository.diff(head, merged.commit, type="two_dot", prefix=DOCUMENTS_PREFIX):
            path = change.path.removeprefix(DOCUMENTS_PREFIX)
            if change.type == "removed":
                del place[path]
            else:
                place[path] = other.segment_of(path)
        manifest = (mine if mine.segments else yours).model_copy(update={"segments": ()})
        release = merged.model_copy(update={"manifest": manifest})
        draft = IndexDraft(knowledge_base, release, [])
        for snapshot in (ours, other):
            known = {ref.id for ref, _ in draft.segments}
            refs = snapshot.release.manifest.segments
            for ref, segment in zip(refs, snapshot.segments, strict=True):
                if ref.id not in known:
                    dead = [path for path in segment.documents["path"] if place.get(path) != ref.id]
                    draft.segments.append((ref.without(dead), segment))
        write_index(draft, transaction)
