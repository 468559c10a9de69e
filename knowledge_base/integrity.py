"""Is everything stored still what it was: fsck, and rebuilding the caches."""

from collections.abc import Callable, Iterator
from pathlib import Path

from knowledge_base.configuration import SETTINGS_PATH
from knowledge_base.errors import ExpiredError, PlumblineError
from knowledge_base.home import MAIN, KnowledgeBase, release_branches, repair_repository
from knowledge_base.lifecycle import DRAFT
from knowledge_base.release import DOCUMENTS_PREFIX, GOLDEN_PREFIX, PROMPTS_PREFIX, load_release
from knowledge_base.segment_tables import TABLES, segment_id
from knowledge_base.segments import SEGMENTS_PREFIX, Segment
from knowledge_base.snapshot import Snapshot
from knowledge_base.values import Frozen
from knowledge_base.version_store import Repository


class Problem(Frozen):
    """Something fsck found: `where` names a commit, segment or file."""

    where: str
    what: str
    repaired: bool = False


def fsck(
    knowledge_base: KnowledgeBase,
    *,
    progress: Callable[[str], None] = lambda _: None,
    repair: bool = False,
) -> Iterator[Problem]:
    """Check the repository, every release that a branch or tag reaches, and every cache they use.

    Yields a Problem for everything damaged; a missing cache is no problem, it is rebuilt on use. With
    `repair` damaged caches are built again.
    """
    repository = knowledge_base.repository
    progress("repository objects")
    broken = False
    for fault in repository.verify():
        broken = True
        yield Problem(where="repository", what=fault)
    if broken:
        return  # what follows would only repeat it
    segments: dict[str, Segment] = {}
    refs = [branch.id for branch in release_branches(repository)] + [tag.id for tag in repository.list_tags()]
    for commit in {commit.id: commit for ref in refs for commit in repository.log(ref)}.values():
        if DRAFT not in commit.metadata:
            progress(f"release {commit.id[:12]}")
            yield from _check_release(knowledge_base, commit.id, segments)
    progress("caches")
    for segment in segments.values():
        if (knowledge_base.cache / segment.id).exists() and (torn := segment.check_cache()):
            if repair:
                segment.rebuild()
            hint = "" if repair else "; it is rebuilt on use or by `rag rebuild`"
            yield Problem(where=f"cache/{segment.id}", what=f"{torn}{hint}", repaired=repair)
        if wrong := segment.check_index():
            if repair:
                segment.rebuild(fresh=True)
            yield Problem(where=f"collection/{segment.id}", what=wrong, repaired=repair)


def repair_knowledge_base(root: Path, backup: Path | None = None) -> list[str]:
    """Restore what the repository's logs, a backup and the working files still say; a line for each.

    Raises:
        NotFoundError: The backup is no repository.
        StorageError: The disk refused.
    """
    names = [root / SETTINGS_PATH, *(root / PROMPTS_PREFIX).glob("*"), *(root / GOLDEN_PREFIX).glob("*")]
    spares = [path.read_bytes() for path in names if path.is_file()]
    return repair_repository(root, backup, spares)


def _check_release(
    knowledge_base: KnowledgeBase, commit: str, checked: dict[str, Segment]
) -> Iterator[Problem]:
    repository = knowledge_base.repository
    try:
        release = load_release(repository, commit)
        for ref in release.manifest.segments:
            if ref.id in checked:
                continue
            tables = {
                name: repository.get_object(commit, f"{SEGMENTS_PREFIX}{ref.id}/{name}") for name in TABLES
            }
            if segment_id(tables) != ref.id:
                yield Problem(where=f"segment {ref.id}", what="its content does not match its id")
        if release.manifest.segments:
            snapshot = knowledge_base.snapshot(commit)
            checked.update((segment.id, segment) for segment in snapshot.segments)
            yield from _check_snapshot(repository, snapshot)
    except ExpiredError:
        return
    except PlumblineError as error:
        yield Problem(where=f"release {commit[:12]}", what=error.message)


def _check_snapshot(repository: Repository, snapshot: Snapshot) -> Iterator[Problem]:
    commit, manifest = snapshot.release.commit, snapshot.release.manifest
    stored = {
        item.path.removeprefix(DOCUMENTS_PREFIX)
        for item in repository.list_objects(commit, prefix=DOCUMENTS_PREFIX)
    }
    for path in sorted(stored.symmetric_difference(snapshot.paths)):
        yield Problem(where=f"release {commit[:12]}", what=f"document {path!r} is not in both tree and index")
    if (len(snapshot.paths), snapshot.chunk_count) != (manifest.documents, manifest.chunks):
        yield Problem(where=f"release {commit[:12]}", what="the manifest's counts are wrong")


def rebuild(knowledge_base: KnowledgeBase, ref: str = MAIN) -> int:
    """Build the caches of a release anew from its parquet; returns how many passages, none embedded.

    Raises:
        DamagedError: A segment of the release cannot be read.
        LockedError: Another command is writing.
    """
    with knowledge_base.writing():
        snapshot = knowledge_base.snapshot(ref)
        for segment in snapshot.segments:
            segment.rebuild(fresh=True)
        snapshot.close()
        return sum(len(segment.passage_hashes) for segment in snapshot.segments)
