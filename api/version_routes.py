"""The routes of releases: log, one release, difference, promotion, rollback, branches and tags."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from api import visible
from api.access import Reader, Session, Writer
from api.document_routes import Ref
from api.idempotency import Claim, IdempotencyKey, fingerprint
from api.job_routes import Asked, Limit, start_job
from api.jobs import Job, Work
from knowledge_base.history import list_branches, list_tags
from knowledge_base.home import MAIN, check_branch
from knowledge_base.lifecycle import check_promotable
from knowledge_base.republishing import find_rollback, rollback
from knowledge_base.version_store import Commit

RefPath = Annotated[
    str, InPath(min_length=1, max_length=200, description="Branch, tag, commit or main@{date}.")
]
Name = Annotated[str, InPath(min_length=1, max_length=100)]

# For machines that read a schema; the version store has the last word, and says what is wrong with a name.
BRANCH_PATTERN = "^[0-9A-Za-z_][-0-9A-Za-z_]{0,99}$"
TAG_PATTERN = "^[0-9A-Za-z_][-0-9A-Za-z_]{0,99}$"


class LogEntry(BaseModel):
    """A release in the log: what changed, what the gate said. Counts may be closed to the caller."""

    commit: str
    parents: list[str]
    refs: list[str]
    date: str
    message: str
    changed: list[str]
    documents: int | None
    chunks: int | None
    documents_changed: dict[str, int]
    chunks_changed: dict[str, int]
    verdict: str
    override: str


class EvaluatedEntry(LogEntry):
    """The same, with what evaluations said later of a release that the gate did not let through."""

    evaluated: str


class LogPage(BaseModel):
    """Releases, newest first; ask again with `ref` = `next` for older ones."""

    releases: list[EvaluatedEntry]
    next: str | None


class ReleaseDescription(LogEntry):
    """One release in full."""

    settings: dict[str, Any]
    prompt: str
    embedder: dict[str, Any]
    chunker: dict[str, Any]
    segments: list[dict[str, Any]]
    paths: list[str]
    verdicts: list[dict[str, Any]]


class Rename(BaseModel):
    """A document that has another path now."""

    model_config = ConfigDict(populate_by_name=True)

    before: str = Field(alias="from")
    after: str = Field(alias="to")


class DocumentDifference(BaseModel):
    """Documents by what became of them."""

    added: list[str]
    changed: list[str]
    deleted: list[str]
    renamed: list[Rename]


class Difference(BaseModel):
    """What changed from one release to another."""

    documents: DocumentDifference
    chunks: dict[str, int]
    settings: dict[str, dict[str, Any]]
    golden: dict[str, Any]


class Promotion(Asked):
    """What to promote; with `override`, past the gate, and the reason stays in the log for ever."""

    ref: str = Field(min_length=1, max_length=200)
    message: str | None = Field(default=None, min_length=1, max_length=2000)
    override: str = Field(default="", max_length=500)


class Rollback(Asked):
    """Which release to go back to (without `ref` the one before), and where main is believed to be."""

    ref: str | None = Field(default=None, min_length=1, max_length=200)
    expected: str | None = Field(
        default=None, pattern="^[0-9a-f]{40}([0-9a-f]{24})?$", description="Refused when main is elsewhere."
    )
    reopen: StrictBool = Field(
        default=False, description="Open what was closed since that release; an admin may."
    )


class RolledBack(BaseModel):
    """Main's new commit, and the release whose content it has."""

    commit: str
    content_of: str


class NewBranch(Asked):
    """A branch to make."""

    branch: str = Field(min_length=1, max_length=100, json_schema_extra={"pattern": BRANCH_PATTERN})
    source: str = Field(default=MAIN, min_length=1, max_length=200)


class NewTag(Asked):
    """A tag to make."""

    tag: str = Field(min_length=1, max_length=100, json_schema_extra={"pattern": TAG_PATTERN})
    ref: str = Field(default=MAIN, min_length=1, max_length=200)


class Head(BaseModel):
    """The commit that a branch or tag names."""

    commit: str
    date: str = ""
    message: str = ""


class BranchHead(Head):
    """A branch."""

    branch: str


class TagHead(Head):
    """A tag."""

    tag: str


def version_routes() -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["releases"])
    _add_history(router)
    _add_moves(router)
    _add_names(router)
    return router


def _add_history(router: APIRouter) -> None:
    @router.get("/releases")
    def log(at: Reader, ref: Ref = MAIN, limit: Limit = 100) -> LogPage:
        """List releases, newest first, with what changed in each."""
        found = visible.releases(at, ref, limit + 1)
        more = found[limit]["commit"] if len(found) > limit else None
        return LogPage.model_validate({"releases": found[:limit], "next": more})

    @router.get("/releases/{ref}")
    def show(ref: RefPath, at: Reader) -> ReleaseDescription:
        """Show one release: its settings, documents, segments and verdicts."""
        return ReleaseDescription.model_validate(visible.release(at, ref))

    @router.get("/diff")
    def diff(
        at: Reader,
        left: Annotated[str, Query(alias="from", min_length=1, max_length=200, description="The older ref.")],
        right: Annotated[
            str, Query(alias="to", min_length=1, max_length=200, description="The newer ref.")
        ] = MAIN,
    ) -> Difference:
        """Show what changed between two releases: documents, chunks, settings, golden answers."""
        return Difference.model_validate(visible.difference(at, left, right))


def _add_moves(router: APIRouter) -> None:
    @router.post("/promote", status_code=202)
    def promote(body: Promotion, at: Writer, response: Response, key: IdempotencyKey = None) -> Job:
        """Start a job that makes a candidate the release that main serves, if the gate lets it."""
        return start_promotion(at, key, body, response)

    @router.post("/rollback")
    def roll_back(body: Rollback, at: Writer, key: IdempotencyKey = None) -> RolledBack:
        """Give main the content of an earlier release, in one new commit."""
        at.about.update(body.model_dump(exclude_none=True))
        if body.reopen:
            at.require("admin")
        with at.claim(key) as claim:
            asked = fingerprint(kind="rollback", **body.model_dump())
            if known := claim.known(asked):
                return RolledBack.model_validate(known)
            commit = _carried_out(at, claim, asked) or _roll_back(at, body, claim, asked)
            at.hosted.live.wake()  # of a shared store it would look seconds later
            done = RolledBack(commit=commit.id, content_of=commit.metadata["rollback"])
            at.about.update(done.model_dump())
            claim.keep(asked, done.model_dump())
            return done


def start_promotion(at: Session, key: str | None, asked: Promotion, response: Response) -> Job:
    """Queue a promotion; one past the gate is for admins alone.

    Raises:
        ForbiddenError: It is past the gate, and the caller is no admin.
        OutdatedError: main has moved since the candidate was made from it.
        NoChangesError: main holds all of it already.
        NotFoundError: There is no such ref.
    """
    at.about.update(asked.model_dump(exclude_none=True))
    override = asked.override.strip()
    if override:
        at.require("admin")
    work = Work(kind="promote", ref=asked.ref, message=asked.message, override=override)
    with at.claim(key) as claim:
        return start_job(
            at,
            claim,
            work,
            response,
            check=lambda: check_promotable(at.knowledge_base.repository, asked.ref),
        )


def _carried_out(at: Session, claim: Claim, asked: str) -> Commit | None:
    """The rollback that the same request made before its reply was kept, if it came so far."""
    plan = claim.planned(asked)
    return find_rollback(at.knowledge_base.repository, plan["head"], plan["target"]) if plan else None


def _roll_back(at: Session, body: Rollback, claim: Claim, asked: str) -> Commit:
    with visible.reopening(at):
        return rollback(
            at.knowledge_base,
            body.ref,
            expected=body.expected,
            reopen=body.reopen,
            planned=lambda head, target: claim.plan(asked, head=head, target=target),
        )


def _add_names(router: APIRouter) -> None:
    @router.get("/branches")
    def branches(at: Reader) -> list[BranchHead]:
        """List branches."""
        heads = list_branches(at.knowledge_base.repository)
        return [BranchHead.model_validate(visible.log_entry(at, head)) for head in heads]

    @router.post("/branches", status_code=201)
    def make_branch(body: NewBranch, at: Writer) -> BranchHead:
        """Make a branch; it costs nothing."""
        at.about.update(body.model_dump())
        made = at.knowledge_base.repository.create_branch(check_branch(body.branch), body.source)
        return BranchHead(branch=made.id, commit=made.commit_id)

    @router.delete("/branches/{name}", status_code=204)
    def delete_branch(name: Name, at: Writer) -> None:
        """Delete a branch; releases that nothing else names are collected later."""
        at.knowledge_base.repository.delete_branch(check_branch(name))

    @router.get("/tags")
    def tags(at: Reader) -> list[TagHead]:
        """List tags: names for releases that never move."""
        heads = list_tags(at.knowledge_base.repository)
        return [TagHead.model_validate(visible.log_entry(at, head)) for head in heads]

    @router.post("/tags", status_code=201)
    def make_tag(body: NewTag, at: Writer) -> TagHead:
        """Make a tag."""
        at.about.update(body.model_dump())
        made = at.knowledge_base.repository.create_tag(body.tag, body.ref)
        return TagHead(tag=made.id, commit=made.commit_id)

    @router.delete("/tags/{name}", status_code=204)
    def delete_tag(name: Name, at: Writer) -> None:
        """Delete a tag."""
        at.knowledge_base.repository.delete_tag(name)
