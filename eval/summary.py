"""Figures of a whole set of answers: abstention, latency, tokens, cost."""

from eval.scores import Scores


def summarize(scores: Scores) -> dict[str, float | None]:
    """Figures by name; None where nothing was there to count.

    Abstention precision is the share of abstentions that were right, recall the share of unanswerable
    questions that were abstained from. Times, tokens and cost are of when an answer was made, which may
    have been in an earlier evaluation.
    """
    rows = [(row, row.answer) for row in scores.rows if row.answer is not None]
    right = scores.values("abstention")
    abstained = [row.id for row, answer in rows if answer.abstained]
    rightly = [key for key in abstained if right.get(key, 0.0) == 1.0]
    missed = [row.id for row, answer in rows if not answer.abstained and right.get(row.id) == 0.0]
    times = sorted(answer.timings_ms.get("total", 0.0) for _, answer in rows)
    return {
        "abstention_precision": _share(len(rightly), len(abstained)),
        "abstention_recall": _share(len(rightly), len(rightly) + len(missed)),
        "p50_ms": times[len(times) // 2] if times else None,
        "p95_ms": times[min(len(times) - 1, int(0.95 * len(times)))] if times else None,
        "input_tokens": float(sum(answer.usage.input_tokens for _, answer in rows)),
        "output_tokens": float(sum(answer.usage.output_tokens for _, answer in rows)),
        "cost": round(sum(answer.cost for _, answer in rows), 6),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
