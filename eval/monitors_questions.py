"""Monitor of what people ask: are tonight's questions still the kind that the release was tested on?"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.drift_statistics import (
    MINIMUM_BLOCKS,
    MINIMUM_ITEMS,
    Classified,
    Floats,
    Items,
    Sample,
    Test,
    block_mean,
    block_mmd,
    domain_classifier,
)
from eval.family import PAGE_LEVEL
from eval.findings import Chart, Finding, Section, Table, insufficient, table
from eval.night_inputs import Night, blocks_of

AUC_FLOOR, AUC_PAGE = 0.55, 0.60
"""A classifier that tells a share s of new questions apart without fail has an AUC of 0.5 + s/2."""
_OUTSIDE_FLOOR, _OUTSIDE_PAGE = 0.05, 0.15
_PER_SIDE = 1_000
_TOPICS = 20
_NAMED, _CHARTED = 3, 10
_WORD = re.compile(r"\w+")
_TYPICAL = 10
_CONTROL = 0.5
"""Share of questions of one rare topic that the self-test puts into half of the reference."""
_CONTROLLED = 200
"""Questions that a reference must hold for its half to show even that."""
_FEWEST = 3


@dataclass(frozen=True)
class Questions:
    """Vectors of the reference's questions and of tonight's, with their blocks and texts."""

    sample: Sample
    texts: list[str]

    @classmethod
    def of(cls, night: Night) -> "Questions":
        """Embed both windows with the served release's embedder."""
        embedder = night.engine.embedder
        texts = [one.answer.question for one in (*night.asked_before, *night.asked)]
        known = {text: embedder.embed_query(text) for text in dict.fromkeys(texts)}
        vectors = np.array([known[text] for text in texts], np.float32).reshape(-1, embedder.dimension)
        old = len(night.asked_before)
        sample = Sample.of(
            vectors[:old], blocks_of(night.asked_before), vectors[old:], blocks_of(night.asked)
        )
        return cls(sample, texts)


def questions(night: Night) -> Section:
    """Tonight's questions against the reference's: drift, topics, and how far from the documents they are."""
    asked = Questions.of(night)
    old, new, blocks, new_blocks = asked.sample.counts
    sizes = {"questions": float(new), "reference_questions": float(old)}
    if not asked.sample.sufficient:
        why = (
            f"{new} questions in {new_blocks} quarters of an hour against {old} in {blocks}: a test needs "
            f"{MINIMUM_ITEMS} in {MINIMUM_BLOCKS} on both sides"
        )
        finding = insufficient("queries", "drift", why).model_copy(update={"n": new, "reference_n": old})
        untested = insufficient("self_test", "control", "too few questions to try the detector on")
        return Section(monitor="queries", title="Questions", findings=(finding, untested), values=sizes)
    seed = night.seed("queries")
    mmd = block_mmd(asked.sample.take(asked.sample.thinned(seed)), seed)
    rows = asked.sample.thinned(seed, _PER_SIDE)
    told_apart = domain_classifier(asked.sample.take(rows), seed)
    outside = _outside(night, asked.sample, seed)
    topics, chart = _topics(asked, seed)
    return Section(
        monitor="queries",
        title="Questions",
        findings=(
            _drift("mmd", mmd, told_apart, new, old),
            _drift("classifier", told_apart, told_apart, new, old),
            outside,
            *_self_test(asked.sample, seed),
        ),
        tables=(
            topics,
            table("The most typical new questions", ("question",), _typical(asked, rows, told_apart.scores)),
        ),
        charts=(chart,),
        values=sizes
        | {
            "query_mmd": mmd.statistic,
            "query_auc": told_apart.statistic,
            "query_outside_share": 0.05 + (outside.effect or 0.0),
        },
    )


def _drift(check: str, test: Test, told_apart: Classified, new: int, old: int) -> Finding:
    low, high = told_apart.interval
    said = (
        f"MMD² of tonight's questions to the reference's is {test.statistic:.5f}, by chance up to "
        f"{test.chance:.5f}"
        if check == "mmd"
        else f"a classifier tells tonight's questions from the reference's with AUC {test.statistic:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f})"
    )
    return Finding(
        monitor="queries",
        check=check,
        said=said,
        effect=round(told_apart.statistic, 6),
        floor=AUC_FLOOR,
        page_floor=AUC_PAGE,
        p=test.p,
        n=new,
        reference_n=old,
    )


def _outside(night: Night, sample: Sample, seed: int) -> Finding:
    """Whether the questions are farther from the documents; as effect, how many more are outside.

    A question is outside when its nearest passage is farther than that of 95 % of the reference's. The
    test is on the distances: a threshold taken from one side only would favour that side.
    """
    parts = np.array_split(sample.items, len(sample.items) // 256 + 1)
    nearest = np.concatenate([np.matmul(part, night.vectors.T).max(1) for part in parts])
    test = block_mean(Sample((1 - nearest).astype(float), sample.blocks, sample.newer), seed)
    far = float((nearest[sample.newer] < np.quantile(nearest[~sample.newer], 0.05)).mean())
    return Finding(
        monitor="queries",
        check="outside",
        said=f"{far:.1%} of the questions are farther from every passage than 95 % of the reference's",
        effect=round(far - 0.05, 6),
        floor=_OUTSIDE_FLOOR,
        page_floor=_OUTSIDE_PAGE,
        p=test.p,
        n=int(sample.newer.sum()),
        reference_n=int((~sample.newer).sum()),
    )


def _topics(asked: Questions, seed: int) -> tuple[Table, Chart]:
    """Shares of topics, which are clusters of all the questions; those that grew most come first."""
    sample = asked.sample
    labels = cluster(sample.items, min(_TOPICS, max(2, len(sample.items) // 20)), seed)
    words = [set(_WORD.findall(text.lower())) for text in asked.texts]
    common = Counter(word for one in words for word in one)
    rows = []
    for label in range(int(labels.max()) + 1):
        here = labels == label
        old, new = here[~sample.newer].mean(), here[sample.newer].mean()
        inside = Counter(word for row in np.flatnonzero(here) for word in words[row] if len(word) > 3)
        named = sorted(inside, key=lambda word: (-(inside[word] ** 2) / common[word], word))[:_NAMED]
        rows.append((" ".join(named) or "–", round(float(old), 4), round(float(new), 4)))
    rows.sort(key=lambda row: (row[1] - row[2], row[0]))
    chart = Chart(
        title="Topics of the questions",
        kind="bars",
        labels=tuple(row[0] for row in rows[:_CHARTED]),
        series={
            "reference": tuple(row[1] for row in rows[:_CHARTED]),
            "tonight": tuple(row[2] for row in rows[:_CHARTED]),
        },
    )
    shown = [(name, f"{old:.1%}", f"{new:.1%}") for name, old, new in rows]
    return table("Shares of topics, the most grown first", ("topic", "reference", "tonight"), shown), chart


def cluster(vectors: Items, count: int, seed: int) -> NDArray[np.int64]:
    """Cluster of each unit vector: spherical k-means (Dhillon and Modha, 2001), ten rounds."""
    random = np.random.default_rng(seed)
    centres = vectors[random.choice(len(vectors), count, replace=False)]
    for _ in range(10):
        labels = np.argmax(vectors @ centres.T, axis=1)
        for label in range(count):
            if (labels == label).any():
                centre = vectors[labels == label].sum(0)
                centres[label] = centre / max(float(np.linalg.norm(centre)), 1e-12)
    found: NDArray[np.int64] = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return found


def _typical(asked: Questions, rows: NDArray[np.int64], scores: Floats) -> list[tuple[str]]:
    """The questions that look newest to a classifier which has not seen their blocks."""
    ordered = [int(row) for row in rows[np.argsort(-scores, kind="stable")] if asked.sample.newer[row]]
    texts = dict.fromkeys(asked.texts[row] for row in ordered)
    return [(text[:200],) for text in list(texts)[:_TYPICAL]]


def _self_test(sample: Sample, seed: int) -> list[Finding]:
    """The detector tried on this night's own reference: once on nothing, once on a drift put there.

    The blocks of the reference are halved. As they are, the halves must look alike; with half of the one
    replaced by questions of a single topic, they must not.
    """
    old = np.flatnonzero(~sample.newer)
    items, blocks = sample.items[old], sample.blocks[old]
    random = np.random.default_rng(seed)
    half = random.permutation(int(blocks.max()) + 1)[blocks] % 2 == 1
    halves = Sample(items, blocks, half)
    if len(items) < _CONTROLLED or not halves.sufficient:
        return [
            insufficient("self_test", "control", f"a control needs a reference of {_CONTROLLED} questions")
        ]
    halves = halves.take(halves.thinned(seed))
    nothing = block_mmd(halves, seed)
    topic = cluster(items, min(_TOPICS, len(items) // 20), seed)
    sizes = np.bincount(topic)
    one = items[topic == np.where(sizes >= _FEWEST, sizes, len(items)).argmin()]
    drifted = halves.items.copy()
    rows = np.flatnonzero(halves.newer)
    chosen = random.choice(rows, int(_CONTROL * len(rows)), replace=False)
    drifted[chosen] = one[random.integers(0, len(one), len(chosen))]
    seen = block_mmd(Sample(drifted, halves.blocks, halves.newer), seed)
    return [
        Finding(
            monitor="self_test",
            check="nothing",
            level="warn" if nothing.p <= PAGE_LEVEL else "ok",
            said=f"halves of the reference compared with each other: p = {nothing.p:.4f}",
            n=len(halves.items),
        ),
        Finding(
            monitor="self_test",
            check="drift",
            level="ok" if seen.p <= PAGE_LEVEL else "blind",
            said=f"with {_CONTROL:.0%} of one half from a single topic: p = {seen.p:.4f}"
            + ("" if seen.p <= PAGE_LEVEL else "; the detector does not see it"),
            n=len(halves.items),
        ),
    ]
