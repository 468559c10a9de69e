import hashlib
import json
import os
import subprocess
import sys
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_base.errors import EmbedderError
from knowledge_base.sentences import split_sentences
from rag.evidence import Evidence, Words
from rag.support import GROUNDING, JUDGE, READ_THRESHOLD, SUPPORT_THRESHOLD, support
from rag.support_reader import PIECE, base_weights, read_claims, unsupported

WARSAW = (
    "Warsaw is the capital of Poland. It lies on the Vistula, about 260 kilometres from the Baltic Sea. "
    "The old town was rebuilt after 1945 and has been a World Heritage site since 1980."
)
# Long enough words, so that no part of another sentence is a claim by chance.
TEXTS = st.text(alphabet="abcdef 12.,!?\n#|-ÄßЖ文", min_size=1, max_size=120)


@given(text=TEXTS, other=TEXTS)
@settings(max_examples=60)
def test_a_quoted_sentence_is_supported(text: str, other: str) -> None:
    quoted = [text[start:end] for start, end in split_sentences(text)]
    assert support(quoted, [other, text]) == [1.0] * len(quoted)


@given(made=st.lists(TEXTS, max_size=4), contexts=st.lists(TEXTS, max_size=3))
@settings(max_examples=60)
def test_support_is_a_probability_and_the_same_each_time(made: list[str], contexts: list[str]) -> None:
    scores = support(made, contexts)
    assert len(scores) == len(made)
    assert all(0 <= score <= 1 for score in scores)
    assert scores == support(made, contexts)


def test_without_contexts_nothing_is_supported_but_a_claim_without_words() -> None:
    assert support(["Warsaw is in Poland.", "..."], []) == [0.0, 1.0]
    assert support(["Warsaw is in Poland."], ["", "\n"]) == [0.0]


def test_a_quote_in_other_case_and_spacing_counts_but_a_part_of_a_word_does_not() -> None:
    assert support(["warsaw is  the capital of poland"], [WARSAW]) == [1.0]
    assert support(["Open port 8"], ["Open port 80 first."])[0] < 1


@pytest.mark.parametrize(
    "wrong",
    [
        "The old town was rebuilt after 1918.",
        "Warsaw has an airport, an opera and two football clubs in the first league.",
        "Cracow lies on the Danube, near Vienna.",
    ],
)
def test_what_the_contexts_do_not_say_is_less_supported_than_what_they_say(wrong: str) -> None:
    right = "Warsaw, Poland's capital, lies on the Vistula."
    low, high = support([wrong, right], [WARSAW])
    assert low < SUPPORT_THRESHOLD < high


def test_every_process_gives_the_same_score() -> None:
    claim = "Warsaw, rebuilt after 1945, lies about 300 kilometres from the Baltic Sea and its old harbours."
    program = f"from rag.support import support; print(support([{claim!r}], [{WARSAW!r}]))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(runs) == 1


def test_the_judges_are_named_after_the_weights_that_are_shipped() -> None:
    models = resources.files("rag") / "models"
    facts = json.loads((models / "support.json").read_text())
    trees = hashlib.sha256((models / "support.onnx").read_bytes()).hexdigest()
    adapter = hashlib.sha256((models / "support_reader.safetensors").read_bytes()).hexdigest()
    base = hashlib.sha256(base_weights().read_bytes()).hexdigest()
    assert (facts["trees"], facts["read"]["adapter"], facts["read"]["base"]) == (trees, adapter, base)
    assert trees[:12] in GROUNDING
    assert hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12] in JUDGE


@pytest.mark.parametrize(
    ("passage", "right", "wrong"),
    [
        (WARSAW, "Poland's capital is Warsaw.", "Berlin is the capital of Poland."),
        (
            WARSAW,
            "Since 1980 the old town of Warsaw has been a World Heritage site.",
            "Cracow is the capital of Poland, and the old town has been a World Heritage site since 1980.",
        ),
        (
            "The vaccine must be stored in the refrigerator between 2 and 8 degrees. "
            "Frozen doses are thrown away.",
            "The vaccine is stored between 2 and 8 degrees in a refrigerator.",
            "The vaccine cannot be stored in the refrigerator, and frozen doses are thrown away.",
        ),
    ],
    ids=["another name", "another name in a true sentence", "negated"],
)
def test_the_reader_catches_what_counting_lets_pass(passage: str, right: str, wrong: str) -> None:
    assert support([wrong], [passage])[0] >= SUPPORT_THRESHOLD
    assert support([wrong], [passage], read=True)[0] < READ_THRESHOLD
    assert support([right], [passage], read=True)[0] >= READ_THRESHOLD


@given(made=st.lists(TEXTS, max_size=4), contexts=st.lists(TEXTS, max_size=3))
@settings(max_examples=40)
def test_the_reader_judges_any_text_and_the_same_each_time(made: list[str], contexts: list[str]) -> None:
    scores = support(made, contexts, read=True)
    assert len(scores) == len(made)
    assert all(0 <= score <= 1 for score in scores)
    assert scores == support(made, contexts, read=True)


def test_the_reader_finds_the_passage_among_more_text_than_it_can_read() -> None:
    noise = [
        f"Route {n} of the city's buses calls at {n + 3} stops and carries goods too." for n in range(80)
    ]
    claim = "Since 1980 the old town of Warsaw has been a World Heritage site."
    assert support([claim], [" ".join(noise), WARSAW], read=True)[0] >= READ_THRESHOLD
    assert support([claim], [" ".join(noise)], read=True)[0] < READ_THRESHOLD


def test_an_invention_does_not_count_against_the_claim_beside_it() -> None:
    claims = ["Poland's capital is Warsaw.", "Elephants paint houses on Tuesdays."]
    right, wrong = support(claims, [WARSAW], read=True)
    assert wrong < READ_THRESHOLD <= right


def test_an_answer_longer_than_the_reader_can_hold_is_judged_to_its_end() -> None:
    right = [f"Warsaw, Poland's capital, is one of {n} towns that lie on the Vistula." for n in range(2, 40)]
    scores = support(
        [*right, "The Danube was frozen in 1918 and drowned the whole of Cracow."], [WARSAW], read=True
    )
    assert len(scores) == len(right) + 1
    assert scores[-1] < READ_THRESHOLD


def test_a_reader_on_another_base_model_says_so() -> None:
    with pytest.raises(EmbedderError, match="other weights"):
        unsupported([Words("Warsaw is large.")], Evidence.of([WARSAW]), [WARSAW], "0" * 64)


def test_every_claim_of_a_long_answer_is_read_whole_in_one_piece() -> None:
    made = [f"Warsaw is one of {n} towns that lie on the river Vistula in Poland." for n in range(2, 24)]
    pieces = read_claims(made, Evidence.of([WARSAW]))
    assert len(pieces) > 1
    found = [n for piece in pieces for n in dict.fromkeys(piece.claims) if n >= 0]
    assert found == list(range(len(made)))
    assert all(len(piece.tokens) == len(piece.claims) == len(piece.places) <= PIECE for piece in pieces)
