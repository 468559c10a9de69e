"""Embedding settings against sentence-transformers as everybody calls it: speed, and agreement with it.

The same real passages for every setting, in turn, in one run. Agreement is the cosine to the fp32 vector
and the share of each passage's ten nearest neighbours that stay.
"""

import json
import random
import time
from typing import Any

import numpy as np

from benchmarks.common import data_folder, models_folder, parser, read_jsonl, show
from knowledge_base.configuration import EmbedderSettings
from knowledge_base.embedders import load_embedder, resolve_model

SETTINGS = {
    "Plumbline fp32": {"precision": "fp32"},
    "Plumbline int8 (default)": {"precision": "int8"},
    "Plumbline static": {"model": "static:all-MiniLM-L6-v2"},
}


def main() -> None:
    """Embed the same passages with every setting."""
    made = parser(__doc__ or "")
    made.add_argument("--texts", type=int, default=300)
    arguments = made.parse_args()
    corpus = read_jsonl(data_folder() / "scifact" / "corpus.jsonl")
    texts = [f"{row['title']}\n\n{row['text']}" for row in random.Random(0).sample(corpus, arguments.texts)]

    from sentence_transformers import SentenceTransformer

    original = SentenceTransformer(str(resolve_model("all-MiniLM-L6-v2")), device="cpu")
    original.encode(texts[:8])
    started = time.perf_counter()
    exact = original.encode(texts, normalize_embeddings=True)
    base = time.perf_counter() - started
    rows: list[list[Any]] = [["sentence-transformers encode()", len(texts) / base, 1.0, 1.0, 1.0]]
    for name, settings in SETTINGS.items():
        embedder = load_embedder(EmbedderSettings.model_validate(settings), models_folder())
        embedder.embed_documents(texts[:8])
        started = time.perf_counter()
        vectors = embedder.embed_documents(texts)
        seconds = time.perf_counter() - started
        same_space = vectors.shape == exact.shape and "static" not in name
        cosine = float((vectors * exact).sum(axis=1).mean()) if same_space else "-"
        rows.append([name, len(texts) / seconds, base / seconds, cosine, overlap(vectors, exact)])
    if arguments.json:
        names = ("setting", "texts_per_second", "speed_up", "cosine", "top10_overlap")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
        return
    show(f"{len(texts)} abstracts", ("setting", "texts/s", "x", "mean cosine", "top-10 overlap"), rows)


def overlap(vectors: Any, exact: Any) -> float:
    """Mean share of each text's ten nearest neighbours that both settings agree on."""
    both = []
    for space in (vectors, exact):
        similar = space @ space.T
        np.fill_diagonal(similar, -2)
        both.append(np.argsort(-similar, axis=1)[:, :10])
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*both, strict=True)]))


if __name__ == "__main__":
    main()
