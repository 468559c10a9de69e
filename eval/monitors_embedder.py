"""Monitor of the embedder: texts that were embedded before get the vectors that they had."""

import numpy as np

from eval.findings import Finding, Section, insufficient
from eval.night_inputs import Night
from knowledge_base.errors import PlumblineError
from rag.engine import Engine

CANARY_TEXTS = 128
CANARY_COSINE = 0.9999


def canary(night: Night) -> Section:
    """Embed texts again that were embedded before: the served release's own, and the reference's."""
    engine = night.engine
    findings = [_compare(engine, night.served.commit, night, "served")]
    reference = night.reference.release
    if reference != night.served.commit:
        try:
            findings.append(_compare(engine, reference, night, "reference"))
        except PlumblineError as error:
            findings.append(Finding(monitor="embedder", check="reference", level="blind", said=error.message))
    return Section(
        monitor="embedder",
        title="Embedder",
        findings=tuple(findings),
        values={f"canary_cosine_{finding.check}": 1 - (finding.effect or 0.0) for finding in findings},
    )


def _compare(engine: Engine, commit: str, night: Night, which: str) -> Finding:
    """The least cosine between stored vectors of a release and those that its texts are given now."""
    snapshot = night.knowledge_base.snapshot(commit)
    live = np.flatnonzero(snapshot.live)
    if not len(live):
        snapshot.close()
        return insufficient("embedder", which, "the release holds no passage to embed again")
    stored = snapshot.release.manifest.embedder
    drawn = np.sort(np.random.default_rng(night.seed("canary")).permutation(live)[:CANARY_TEXTS])
    texts = [snapshot.chunks_of(int(passage))[0].text for passage in drawn]
    before = snapshot.passage_vectors(drawn).astype(np.float64)
    snapshot.close()
    after = engine.embedder.embed_documents(texts).astype(np.float64)
    if before.shape != after.shape:
        least = 0.0
        said = f"vectors have {after.shape[1]} numbers, those of {commit[:12]} have {before.shape[1]}"
    else:
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        least = round(float(((before * after).sum(1) / norms).min()), 6)
        said = f"{len(texts)} texts of {which} {commit[:12]} embedded again: least cosine {least:.6f}"
    now = engine.embedder.fingerprint
    differing = sorted(key for key in stored if stored[key] != now.get(key))
    if differing:
        said += f"; another {', '.join(differing)}"
    return Finding(
        monitor="embedder",
        check=which,
        level="ok" if least >= CANARY_COSINE else "page",
        said=said,
        effect=round(1 - least, 6),
        floor=1 - CANARY_COSINE,
        n=len(texts),
    )
