"""Which deleted documents came back under another path: git's rename detection, on bytes we hold.

Follows diffcore-rename of git (exact content first, then equal file names, then the best remaining
pairs above 50 % similarity), so that `rag diff` says what `git diff -M` would; here because a
lakeFS repository has no such command.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from posixpath import basename

MINIMUM_SIMILARITY = 0.5
_BASENAME_SIMILARITY = 0.75  # git asks more of a pair that was chosen by its name alone
_MAX_PAIRS = 1_000_000  # git's own limit: 1000 x 1000 comparisons, beyond it only exact renames


def find_renames(
    deleted: Mapping[str, str],
    added: Mapping[str, str],
    read_old: Callable[[str], bytes],
    read_new: Callable[[str], bytes],
) -> list[tuple[str, str]]:
    """Pairs (old path, new path), given path -> content hash of what disappeared and appeared."""
    pairs = _exact(deleted, added)
    paired = {old for old, _ in pairs}, {new for _, new in pairs}
    old_left = [path for path in deleted if path not in paired[0]]
    new_left = [path for path in added if path not in paired[1]]
    if old_left and new_left and len(old_left) * len(new_left) <= _MAX_PAIRS:
        old = {path: Fragments(read_old(path)) for path in old_left}
        new = {path: Fragments(read_new(path)) for path in new_left}
        named = _same_name(old, new)
        taken = {path for pair in named for path in pair}
        rest = _best(
            {path: value for path, value in old.items() if path not in taken},
            {path: value for path, value in new.items() if path not in taken},
        )
        pairs += named + rest
    return sorted(pairs, key=lambda pair: pair[1].encode())


class Fragments:
    """A file as a multiset of fragments: lines, cut after 64 bytes."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.counts: Counter[bytes] = Counter()
        binary = b"\0" in content[:8000]
        if not binary:
            content = content.replace(b"\r\n", b"\n")
        for line in content.splitlines(keepends=True) if not binary else [content]:
            for start in range(0, len(line), 64):
                self.counts[line[start : start + 64]] += 1

    def similarity(self, other: "Fragments") -> float:
        """Share of the larger file's bytes that both hold, 0 to 1."""
        larger = max(self.size, other.size)
        if not larger:
            return 0.0
        common = self.counts & other.counts
        return sum(len(fragment) * count for fragment, count in common.items()) / larger


def _exact(deleted: Mapping[str, str], added: Mapping[str, str]) -> list[tuple[str, str]]:
    by_hash: dict[str, list[str]] = {}
    for path in sorted(deleted):
        by_hash.setdefault(deleted[path], []).append(path)
    pairs = []
    for new in sorted(added):
        candidates = by_hash.get(added[new], [])
        if candidates:
            old = next((path for path in candidates if basename(path) == basename(new)), candidates[0])
            candidates.remove(old)
            pairs.append((old, new))
    return pairs


def _unique_names(paths: Iterable[str]) -> dict[str, str]:
    paths = list(paths)
    counts = Counter(basename(path) for path in paths)
    return {basename(path): path for path in paths if counts[basename(path)] == 1}


def _same_name(old: Mapping[str, Fragments], new: Mapping[str, Fragments]) -> list[tuple[str, str]]:
    old_names, new_names = _unique_names(old), _unique_names(new)
    return [
        (old_names[name], new_names[name])
        for name in sorted(old_names.keys() & new_names.keys())
        if old[old_names[name]].similarity(new[new_names[name]]) >= _BASENAME_SIMILARITY
    ]


def _best(old: Mapping[str, Fragments], new: Mapping[str, Fragments]) -> list[tuple[str, str]]:
    scored = [
        (-score, basename(before) != basename(after), before, after)
        for after, fragments in new.items()
        for before, candidate in old.items()
        if (score := candidate.similarity(fragments)) >= MINIMUM_SIMILARITY
    ]
    taken: set[str] = set()
    pairs = []
    for _, _, before, after in sorted(scored):
        if before not in taken and after not in taken:
            taken |= {before, after}
            pairs.append((before, after))
    return pairs
