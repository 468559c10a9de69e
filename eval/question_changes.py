"""Ways in which people's questions change: for rehearsals of the report and for measuring its power."""

import random
import re
from collections.abc import Callable, Mapping

_WORD = re.compile(r"\w+")
_PAIRS = """
what:was which:welche who:wer when:wann where:wo why:warum how:wie is:ist are:sind was:war
were:waren do:tun does:tut did:tat the:die a:ein an:ein of:von to:zu in:in on:auf at:bei for:für
with:mit by:durch from:aus and:und or:oder not:nicht can:kann could:könnte should:sollte will:wird
would:würde must:muss have:haben has:hat had:hatte be:sein been:gewesen many:viele much:viel
more:mehr most:meisten it:es its:sein i:ich we:wir you:du they:sie he:er she:sie my:mein our:unser
your:dein their:ihr his:sein her:ihr this:dies that:das these:diese there:dort if:wenn as:als
than:als then:dann use:benutzen used:benutzt work:arbeiten mean:bedeuten name:Name year:Jahr
number:Zahl time:Zeit people:Leute new:neu first:erste one:ein two:zwei between:zwischen
during:während after:nach before:vor about:über into:in other:andere some:einige any:irgendein
"""
_GERMAN = dict(pair.split(":") for pair in _PAIRS.split())

OTHER_TOPIC = (
    "How long do I boil an egg so that the yolk stays soft?",
    "Which flour is best for sourdough bread?",
    "At what temperature is a chicken done?",
    "How do I keep basil from turning black?",
    "Can I freeze cooked rice?",
    "What can I use instead of buttermilk?",
    "Why does my mayonnaise split?",
    "How much salt goes into pasta water?",
    "Do tomatoes belong in the fridge?",
    "How do I sharpen a kitchen knife?",
    "Which oil can be heated the most?",
    "How long does dough have to rest?",
    "What is the difference between stock and broth?",
    "How do I get a crisp crust on a roast?",
    "Is it safe to eat raw mushrooms?",
    "How do I peel garlic quickly?",
    "Which potatoes are good for mashing?",
    "How long does an open jar of jam keep?",
    "Why does my cake sink in the middle?",
    "How do I make yoghurt at home?",
)
"""Questions that hardly any documentation is about."""


def typos(text: str, drawn: random.Random) -> str:
    """Two neighbouring letters swapped in every other word."""
    return _WORD.sub(lambda found: _swapped(found[0], drawn) if drawn.random() < 0.5 else found[0], text)


def _swapped(word: str, drawn: random.Random) -> str:
    if len(word) < 4:
        return word
    place = drawn.randrange(1, len(word) - 2)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def language(text: str, drawn: random.Random) -> str:
    """The commonest English words in German, the others as they are: half another language."""
    return _WORD.sub(lambda found: _GERMAN.get(found[0].lower(), found[0]), text)


def truncated(text: str, drawn: random.Random) -> str:
    """The first half of the words, as typed into a search field."""
    words = text.split()
    return " ".join(words[: max(1, (len(words) + 1) // 2)])


def chatty(text: str, drawn: random.Random) -> str:
    """The same question inside small talk."""
    opening = drawn.choice(("Hi there, quick question: ", "Hello! Could you please tell me, ", "hey so, "))
    return f"{opening}{text[:1].lower()}{text[1:]} {drawn.choice(('Thanks a lot!', 'Thx', 'Cheers :)'))}"


CHANGES: Mapping[str, Callable[[str, random.Random], str]] = {
    "typos": typos,
    "language": language,
    "truncated": truncated,
    "chatty": chatty,
}
