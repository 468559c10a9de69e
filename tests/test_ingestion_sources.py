"""What there is to read: names become document paths, and what cannot be used is said, not dropped."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from ingestion.sources import Sources, list_sources
from knowledge_base.errors import DocumentError, SourceError
from knowledge_base.home import KnowledgeBase


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}", encoding="utf-8")
    return folder


def paths(sources: Sources) -> list[str]:
    return [source.path for source in sources.files]


def test_a_folder_gives_paths_relative_to_itself_in_byte_order(tmp_path: Path) -> None:
    make(tmp_path, "b.md", "a/z.md", "a.md", "Z.md", "é.md", "a-b.md")
    assert paths(list_sources([str(tmp_path)])) == ["Z.md", "a-b.md", "a.md", "a/z.md", "b.md", "é.md"]


def test_hidden_files_and_machine_folders_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "a.md", ".env", ".git/x", "sub/.cache/x", "node_modules/x.md", "b/__pycache__/x")
    found = list_sources([str(tmp_path)])
    assert paths(found) == ["a.md"] and found.skipped == ()


def test_a_single_file_gives_its_name_and_a_prefix_goes_before(tmp_path: Path) -> None:
    make(tmp_path, "deep/a.md")
    assert paths(list_sources([str(tmp_path / "deep" / "a.md")], prefix="/team/")) == ["team/a.md"]


def test_a_glob_gives_paths_relative_to_what_stands_before_the_first_wildcard(tmp_path: Path) -> None:
    make(tmp_path, "docs/a.md", "docs/x/b.md", "docs/x/c.txt", "other/d.md")
    assert paths(list_sources([f"{tmp_path}/docs/**/*.md"])) == ["a.md", "x/b.md"]
    assert paths(list_sources([f"{tmp_path}/*/*.md"])) == ["docs/a.md", "other/d.md"]


def test_a_glob_looks_into_hidden_and_machine_folders_no_more_than_a_folder_does(tmp_path: Path) -> None:
    make(tmp_path, "a.md", ".git/b.md", "node_modules/c.md", "x/node_modules/d.md")
    assert paths(list_sources([f"{tmp_path}/**/*.md"])) == ["a.md"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path: Path) -> None:
    make(tmp_path, "a[1].md", "a1.md")
    assert paths(list_sources([str(tmp_path / "a[1].md")])) == ["a[1].md"]


def test_standard_input_has_the_name_and_bytes_it_was_given() -> None:
    (source,) = list_sources(["-"], prefix="in", stdin=("note.txt", b"words")).files
    assert (source.path, source.read(100)) == ("in/note.txt", b"words")


def test_no_standard_input_is_an_error() -> None:
    with pytest.raises(SourceError):
        list_sources(["-"])


def test_exclude_takes_gitignore_patterns(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "drafts/b.md", "x/c.tmp", "x/keep.tmp")
    found = list_sources([str(tmp_path)], exclude=["drafts/", "*.tmp", "!keep.tmp"])
    assert paths(found) == ["a.md", "x/keep.tmp"]


def test_two_sources_with_one_document_path_name_both_and_hint_at_prefix(tmp_path: Path) -> None:
    make(tmp_path, "one/a.md", "two/a.md")
    with pytest.raises(SourceError) as caught:
        list_sources([str(tmp_path / "one"), str(tmp_path / "two")])
    assert str(tmp_path / "one" / "a.md") in caught.value.message
    assert str(tmp_path / "two" / "a.md") in caught.value.message
    assert "--prefix" in caught.value.hint


def test_the_same_file_named_twice_is_one_source(tmp_path: Path) -> None:
    make(tmp_path, "a.md")
    assert paths(list_sources([str(tmp_path), str(tmp_path / "a.md")])) == ["a.md"]


@pytest.mark.parametrize("argument", ["absent.md", "absent/", "absent/*.md", ""])
def test_what_does_not_exist_is_an_error_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        list_sources([argument])
    assert caught.value.hint


def test_an_empty_folder_has_no_sources(tmp_path: Path) -> None:
    assert list_sources([str(tmp_path)]) == Sources(())


def test_names_that_cannot_be_stored_are_listed_not_fatal(tmp_path: Path) -> None:
    make(tmp_path, "good.md", "back\\slash.md", "new\nline.md", "del\x7f.md")
    with open(os.fsencode(tmp_path) + b"/bad\xff.md", "wb") as file:
        file.write(b"x")
    found = list_sources([str(tmp_path)])
    assert paths(found) == ["good.md"]
    assert [path for path, _ in found.skipped] == [
        "back\\slash.md", "bad\\udcff.md", "del\x7f.md", "new\nline.md"
    ]  # fmt: skip
    assert all(reason for _, reason in found.skipped)
    assert all(path.encode() for path, _ in found.skipped)


def test_names_too_long_to_store_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "/".join(["d" * 240] * 5) + "/a.md", "b.md")
    found = list_sources([str(tmp_path)])
    assert paths(found) == ["b.md"]
    assert "longer than" in found.skipped[0][1]


def test_names_become_normal_form_c(tmp_path: Path) -> None:
    make(tmp_path, unicodedata.normalize("NFD", "Über.md"))
    assert paths(list_sources([str(tmp_path)])) == ["Über.md"]


def test_two_spellings_of_one_name_are_one_document_path_and_so_an_error(tmp_path: Path) -> None:
    make(tmp_path, "é.md", unicodedata.normalize("NFD", "é.md"))
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system normalises names")
    with pytest.raises(SourceError):
        list_sources([str(tmp_path)])


@pytest.mark.parametrize("prefix", ["../up", "a//b", ".git", "a/../b"])
def test_a_prefix_that_cannot_be_stored_is_refused(tmp_path: Path, prefix: str) -> None:
    make(tmp_path, "a.md")
    with pytest.raises(SourceError):
        list_sources([str(tmp_path)], prefix=prefix)


# -- links and special files -------------------------------------------------------------------


def test_links_inside_are_read_and_links_outside_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "kb/a.md", "secret.md")
    (tmp_path / "kb" / "inside.md").symlink_to("a.md")
    (tmp_path / "kb" / "outside.md").symlink_to(tmp_path / "secret.md")
    (tmp_path / "kb" / "broken.md").symlink_to("nowhere")
    (tmp_path / "kb" / "itself.md").symlink_to("itself.md")
    found = list_sources([str(tmp_path / "kb")])
    assert paths(found) == ["a.md", "broken.md", "inside.md", "itself.md"]
    assert found.skipped == (("outside.md", "a link that leads outside the folder"),)
    for unreadable in (found.files[1], found.files[3]):
        with pytest.raises(DocumentError, match="cannot be read"):
            unreadable.read(100)


def test_linked_folders_are_listed_and_loops_end(tmp_path: Path) -> None:
    make(tmp_path, "kb/a.md", "far/b.md")
    (tmp_path / "kb" / "loop").symlink_to(tmp_path / "kb")
    (tmp_path / "kb" / "far").symlink_to(tmp_path / "far")
    found = list_sources([str(tmp_path / "kb")])
    assert paths(found) == ["a.md"]
    assert found.skipped == (("far", "a link that leads outside the folder"),)


def test_a_glob_follows_no_link_that_leads_outside(tmp_path: Path) -> None:
    make(tmp_path, "kb/a.md", "far/b.md", "secret.md")
    (tmp_path / "kb" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "kb" / "outside.md").symlink_to(tmp_path / "secret.md")
    found = list_sources([f"{tmp_path}/kb/**/*.md"])
    assert paths(found) == ["a.md"]
    assert "outside.md" in [path for path, _ in found.skipped]


def test_a_folder_that_is_itself_a_link_is_read(tmp_path: Path) -> None:
    make(tmp_path, "real/a.md")
    (tmp_path / "link").symlink_to("real")
    assert paths(list_sources([str(tmp_path / "link")])) == ["a.md"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    (source,) = list_sources([str(tmp_path)]).files
    with pytest.raises(DocumentError, match="not a regular file"):
        source.read(100)


def test_a_file_above_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(10_000_000_000)
    (source,) = list_sources([str(tmp_path)]).files
    with pytest.raises(DocumentError, match="too large: 10000 MB, the limit is 50 MB"):
        source.read(50_000_000)


def test_a_size_just_above_the_limit_is_not_shown_as_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(bytes(1_000_001))
    (source,) = list_sources([str(tmp_path)]).files
    with pytest.raises(DocumentError, match=r"too large: 1\.1 MB, the limit is 1 MB"):
        source.read(1_000_000)


def test_standard_input_has_the_same_limit() -> None:
    (source,) = list_sources(["-"], stdin=("a.txt", b"12345")).files
    with pytest.raises(DocumentError, match="too large"):
        source.read(4)


def test_a_file_that_vanished_or_is_forbidden_gives_a_plain_reason(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "b.md")
    gone, forbidden = list_sources([str(tmp_path)]).files
    (tmp_path / "a.md").unlink()
    with pytest.raises(DocumentError, match="cannot be read: no such file"):
        gone.read(100)
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "b.md").chmod(0)
    with pytest.raises(DocumentError, match="cannot be read: permission denied"):
        forbidden.read(100)


def test_a_folder_that_cannot_be_listed_stops_everything_unless_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.md", "shut/b.md")
    listing = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="shut cannot be listed: Permission denied"):
        list_sources([str(tmp_path)])
    assert paths(list_sources([str(tmp_path)], exclude=["shut/"])) == ["a.md"]


def test_a_glob_without_two_stars_goes_no_deeper_than_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.md", "x/b.md", "x/y/c.md")
    seen: list[str] = []
    listing = os.scandir

    def watch(path: str) -> object:
        seen.append(Path(path).name)
        return listing(path)

    monkeypatch.setattr(os, "scandir", watch)
    assert paths(list_sources([f"{tmp_path}/*/*.md"])) == ["x/b.md"]
    assert seen == [tmp_path.name, "x"]


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys, ingestion.sources; "
        "print([m for m in ('llama_index', 'numpy', 'chromadb', 'pygit2', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_knowledge_bases_own_files_are_no_documents(empty_kb: KnowledgeBase) -> None:
    root = empty_kb.root
    for name in ("golden/main.jsonl", "docs/prompts/writing.md", "notes.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("# Something\n")
    for folder, prefix in ((root, ""), (root.parent, f"{root.name}/")):
        found = [file.path for file in list_sources([str(folder)]).files if file.path.startswith(prefix)]
        assert found == [f"{prefix}docs/prompts/writing.md", f"{prefix}notes.md"]
    assert [file.path for file in list_sources([str(root / "plumbline.toml")]).files] == ["plumbline.toml"]
