"""The lakeFS double itself: the traps of a real server that a client must not fall into."""

import pytest
from lakefs_sdk import (
    BranchCreation,
    CommitCreation,
    Merge,
    PathList,
    RepositoryCreation,
    TagCreation,
)
from lakefs_sdk.client import LakeFSClient
from lakefs_sdk.exceptions import ApiException

from tests.lakefs_server import Fault, LakeFSServer, Request

REPOSITORY = "knowledge"


@pytest.fixture
def api(lakefs_server: LakeFSServer) -> LakeFSClient:
    from lakefs.config import ClientConfig

    client = LakeFSClient(ClientConfig())
    client.repositories_api.create_repository(
        RepositoryCreation(name=REPOSITORY, storage_namespace="mem://knowledge")
    )
    return client


def put(api: LakeFSClient, branch: str, path: str, content: bytes = b"x", type: str = "text/plain") -> None:
    client = api.objects_api.api_client
    client.call_api(
        "/repositories/{repository}/branches/{branch}/objects",
        "POST",
        {"repository": REPOSITORY, "branch": branch},
        [("path", path)],
        {"Accept": "application/json", "Content-Type": "application/octet-stream"},
        body=content,
        response_types_map={"201": "ObjectStats"},
        auth_settings=["basic_auth"],
        collection_formats={},
    )


def commit(api: LakeFSClient, branch: str = "main", message: str = "m") -> str:
    return str(api.commits_api.commit(REPOSITORY, branch, CommitCreation(message=message)).id)


def status_of(call: object, *arguments: object, **options: object) -> tuple[int, str]:
    with pytest.raises(ApiException) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    return caught.value.status, str(caught.value.body)


def test_a_branch_has_one_staging_area_that_everybody_commits(api: LakeFSClient) -> None:
    put(api, "main", "mine")
    put(api, "main", "theirs")
    commit(api)
    listed = api.objects_api.list_objects(REPOSITORY, "main").results
    assert [item.path for item in listed] == ["mine", "theirs"]


def test_reading_a_branch_shows_what_is_not_committed_and_its_commit_does_not(api: LakeFSClient) -> None:
    put(api, "main", "staged")
    assert len(api.objects_api.list_objects(REPOSITORY, "main").results) == 1
    assert api.objects_api.list_objects(REPOSITORY, "main@").results == []
    head = api.branches_api.get_branch(REPOSITORY, "main").commit_id
    assert api.objects_api.list_objects(REPOSITORY, head).results == []


def test_a_merge_into_a_branch_with_staged_changes_is_refused(api: LakeFSClient) -> None:
    api.branches_api.create_branch(REPOSITORY, BranchCreation(name="work", source="main"))
    put(api, "work", "a")
    commit(api, "work")
    put(api, "main", "somebody's")
    status, said = status_of(api.refs_api.merge_into_branch, REPOSITORY, "work", "main")
    assert status == 400 and "uncommitted changes" in said


def test_a_conflict_names_no_paths(api: LakeFSClient) -> None:
    api.branches_api.create_branch(REPOSITORY, BranchCreation(name="work", source="main"))
    for branch, content in (("work", b"1"), ("main", b"2")):
        put(api, branch, "a", content)
        commit(api, branch)
    status, said = status_of(api.refs_api.merge_into_branch, REPOSITORY, "work", "main")
    assert (status, said) == (409, '{"reference": ""}')
    changes = api.refs_api.diff_refs(REPOSITORY, "main", "work").results
    assert [(change.type, change.path) for change in changes] == [("conflict", "a")]


def test_a_merge_is_never_a_fast_forward_and_squash_has_one_parent(api: LakeFSClient) -> None:
    head = api.branches_api.get_branch(REPOSITORY, "main").commit_id
    api.branches_api.create_branch(REPOSITORY, BranchCreation(name="work", source="main"))
    put(api, "work", "a")
    source = commit(api, "work")
    merged = api.refs_api.merge_into_branch(REPOSITORY, "work", "main").reference
    assert api.commits_api.get_commit(REPOSITORY, merged).parents == [head, source]
    put(api, "work", "b")
    commit(api, "work")
    squashed = api.refs_api.merge_into_branch(
        REPOSITORY, "work", "main", merge=Merge(squash_merge=True, strategy="source-wins")
    ).reference
    found = api.commits_api.get_commit(REPOSITORY, squashed)
    assert found.parents == [merged] and found.metadata == {".lakefs.merge.strategy": "source-wins"}


def test_a_branch_whose_commits_cancel_out_has_nothing_to_merge(api: LakeFSClient) -> None:
    api.branches_api.create_branch(REPOSITORY, BranchCreation(name="work", source="main"))
    put(api, "work", "a")
    commit(api, "work")
    api.objects_api.delete_object(REPOSITORY, "work", "a")
    commit(api, "work")
    status, said = status_of(api.refs_api.merge_into_branch, REPOSITORY, "work", "main")
    assert status == 400 and "no changes" in said


def test_deleting_from_nothing_succeeds_and_too_many_paths_do_not(api: LakeFSClient) -> None:
    answer = api.objects_api.delete_objects(REPOSITORY, "nowhere", PathList(paths=["a"]))
    assert answer.errors == []
    api.objects_api.delete_object(REPOSITORY, "main", "missing")
    many = PathList(paths=[str(number) for number in range(1001)])
    assert status_of(api.objects_api.delete_objects, REPOSITORY, "main", many)[0] == 400


def test_pages_hold_a_hundred_unless_asked(api: LakeFSClient) -> None:
    for number in range(120):
        put(api, "main", f"{number:03}")
    page = api.objects_api.list_objects(REPOSITORY, "main")
    assert (len(page.results), page.pagination.has_more, page.pagination.next_offset) == (100, True, "099")
    rest = api.objects_api.list_objects(REPOSITORY, "main", after="099", amount=1000)
    assert (len(rest.results), rest.pagination.next_offset) == (20, "")


def test_both_encodings_of_a_path_mean_the_same(api: LakeFSClient, lakefs_server: LakeFSServer) -> None:
    import urllib3

    put(api, "main", "docs/a b+ü.txt", b"1")
    url = f"{lakefs_server.endpoint}/api/v1/repositories/{REPOSITORY}/refs/main/objects"
    headers = urllib3.make_headers(basic_auth=":".join(lakefs_server.key))
    for query in ("path=docs/a%20b%2B%C3%BC.txt", "path=docs%2Fa+b%2B%C3%BC.txt"):
        answer = urllib3.request("GET", f"{url}?{query}", headers=headers)
        assert (answer.status, answer.data) == (200, b"1")
        assert answer.headers["ETag"].startswith('"')


def test_tags_never_move_and_share_their_names_with_branches(api: LakeFSClient) -> None:
    api.tags_api.create_tag(REPOSITORY, TagCreation(id="v1", ref="main"))
    for taken in ("v1", "main"):
        assert status_of(api.tags_api.create_tag, REPOSITORY, TagCreation(id=taken, ref="main"))[0] == 409


def test_hidden_branches_are_listed_only_when_asked_for(api: LakeFSClient) -> None:
    api.branches_api.create_branch(REPOSITORY, BranchCreation(name="tx", source="main", hidden=True))
    assert [b.id for b in api.branches_api.list_branches(REPOSITORY).results] == ["main"]
    shown = api.branches_api.list_branches(REPOSITORY, show_hidden=True).results
    assert [branch.id for branch in shown] == ["main", "tx"]


def test_an_empty_commit_is_refused_and_the_default_branch_stays(api: LakeFSClient) -> None:
    status, said = status_of(commit, api)
    assert status == 400 and "no changes" in said
    assert status_of(api.branches_api.delete_branch, REPOSITORY, "main")[0] == 403


def test_a_log_by_path_leaves_merge_commits_out(api: LakeFSClient) -> None:
    api.branches_api.create_branch(REPOSITORY, BranchCreation(name="work", source="main"))
    put(api, "work", "a")
    source = commit(api, "work")
    api.refs_api.merge_into_branch(REPOSITORY, "work", "main")
    found = api.refs_api.log_commits(REPOSITORY, "main", objects=["a"]).results
    assert [item.id for item in found] == [source]


def test_what_the_file_does_not_know_is_a_violation(api: LakeFSClient, lakefs_server: LakeFSServer) -> None:
    if lakefs_server.specification is None:
        pytest.skip("the vendor's OpenAPI file is not here")
    lakefs_server.store.get(REPOSITORY).created = "yesterday"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="creation_date"):
        api.repositories_api.get_repository(REPOSITORY)
    assert len(lakefs_server.violations) == 1 and "getRepository" in lakefs_server.violations[0]
    lakefs_server.violations.clear()


def test_faults_are_served_as_asked(api: LakeFSClient, lakefs_server: LakeFSServer) -> None:
    def busy(request: Request) -> Fault | None:
        return Fault(500) if request.number % 2 else None

    lakefs_server.requests.clear()
    lakefs_server.fault = busy
    assert status_of(api.branches_api.get_branch, REPOSITORY, "main")[0] == 500
    assert api.branches_api.get_branch(REPOSITORY, "main").id == "main"
