"""Personal data in running text, by form and checksum: what is taken out of the answer log.

Found are e-mail addresses, telephone numbers, IBANs, payment cards, US social security numbers and public IP
addresses. Names, street addresses, dates of birth and licence numbers have no form of their own: they are
not found.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["e-mail", "IBAN", "card", "SSN", "IP address", "phone"]


@dataclass(frozen=True)
class PersonalData:
    """One find: characters `start` to `end` of the text."""

    kind: Kind
    start: int
    end: int


_EXTENSION = r"(?:[ ]?(?:x|ext\.?)[ ]?\d{1,6})?"
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
_IBAN = re.compile(
    r"\b(?:[A-Z]{2}\d{2}(?:[ ][A-Z0-9]{4}){2,7}(?:[ ][A-Z0-9]{1,3})?|[A-Za-z]{2}\d{2}[A-Za-z0-9]{11,30})\b"
)
_CARD = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){11,18}(?![\w-]|\.\d)")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_IP = re.compile(
    r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}(?![\w:]|\.\d)|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:.]))"
)
_PHONE = re.compile(
    # With the code of a country; of North America; with the zero of a national number.
    rf"(?<![\w.+])(?<!\d )(?:(?:\+|00)[1-9]\d{{0,2}}(?:[ .-]?\(0\))?(?:[ .-]?\(?\d{{1,4}}\)?){{2,5}}"
    rf"|(?<!-)(?:1[ .-])?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{{4}}"
    rf"|(?<!-)\(?0\d{{1,4}}\)?(?:[ .-]\d{{2,4}}){{2,4}}|(?<!-)\(?0\d{{2,4}}\)?[ -]\d{{5,8}}){_EXTENSION}"
    r"(?!\w|-\d)"
)
# Any other run of digits counts as a telephone number only where a word says so.
_CALLED = re.compile(
    r"\b(?:phones?|telephones?|tel|mobile|cell(?:phone)?|fax|call(?:ed|ing)?|dial|sms|whatsapp|"
    r"text(?:ed)?|messages?|answering|reach(?:ed)?)\b[^\w(]{0,3}(?:[a-z']+[^\w(]{1,3}){0,5}?"
    r"(?P<number>\(?\d[\d ().-]{5,16}\d)(?![\w]|-\d)",
    re.IGNORECASE,
)
_NO_PHONE = re.compile(
    r"(?:\d{1,3}\.){3}\d{1,3}|(?:19|20)\d\d-\d\d-\d\d|\d{1,2}[./]\d{1,2}[./](?:19|20)?\d\d"
)
_CARD_ISSUER = re.compile(
    r"4|5[0-8]|6|2[2-7]|3[0-9]|1800|2131"  # Visa, Mastercard and Maestro, Discover, Amex, Diners, JCB
)


def find_personal_data(text: str) -> list[PersonalData]:
    """What is found, in order and without overlaps: of two, the kind with the stricter check."""
    if not any(sign == "@" or sign == ":" or sign.isdigit() for sign in text):
        return []
    taken: list[PersonalData] = []
    for find in _FINDERS:
        for one in find(text):
            if all(one.end <= other.start or other.end <= one.start for other in taken):
                taken.append(one)
    return sorted(taken, key=lambda one: one.start)


def redact(text: str) -> str:
    """A text with the kind of each find in its place: `[e-mail]`."""
    parts, end = [], 0
    for one in find_personal_data(text):
        parts += [text[end : one.start], f"[{one.kind}]"]
        end = one.end
    return "".join([*parts, text[end:]])


_FREE_TEXT = {
    "question",
    "queries",
    "answer",
    "text",
    "quote",
    "sentence",
    "error",
    "comment",
    "correction",
    "unanswered",
}


def redact_record(value: Any, *, free: bool = False) -> Any:
    """A JSON value in which everything that somebody wrote is redacted; ids, hashes and spans stay."""
    if isinstance(value, Mapping):
        return {key: redact_record(item, free=key in _FREE_TEXT) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_record(item, free=free) for item in value]
    return redact(value) if free and isinstance(value, str) else value


# -- kinds, those with the strictest check first -----------------------------------------------


def _emails(text: str) -> Iterator[PersonalData]:
    for found in _EMAIL.finditer(text):
        yield PersonalData("e-mail", *found.span())


def _ibans(text: str) -> Iterator[PersonalData]:
    for found in _IBAN.finditer(text):
        said = found[0]
        # A word after a number in groups of four may look like one more group.
        while not _is_iban(said) and " " in said:
            said = said.rpartition(" ")[0]
        if _is_iban(said):
            yield PersonalData("IBAN", found.start(), found.start() + len(said))


def _is_iban(said: str) -> bool:
    """ISO 13616: the letters as numbers, the first four signs moved to the end, modulo 97."""
    plain = said.replace(" ", "").upper()
    if not 15 <= len(plain) <= 34 or not plain.isascii():
        return False
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _cards(text: str) -> Iterator[PersonalData]:
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if _CARD_ISSUER.match(digits) and _passes_luhn(digits):
            yield PersonalData("card", *found.span())


def _passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812: every second digit from the right counts twice, its two digits added."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def _ssns(text: str) -> Iterator[PersonalData]:
    for found in _SSN.finditer(text):
        yield PersonalData("SSN", *found.span())


def _ips(text: str) -> Iterator[PersonalData]:
    for found in _IP.finditer(text):
        try:
            address = ipaddress.ip_address(found[0])
        except ValueError:
            continue
        # 127.0.0.1 and the like are nobody's.
        if not (address.is_private or address.is_loopback or address.is_unspecified or address.is_multicast):
            yield PersonalData("IP address", *found.span())


def _phones(text: str) -> Iterator[PersonalData]:
    for pattern, group, least in ((_CALLED, "number", 7), (_PHONE, 0, 8)):
        for found in pattern.finditer(text):
            digits = sum(sign.isdigit() for sign in re.split(r"x|ext", found[group])[0])
            if least <= digits <= 15 and not _NO_PHONE.match(found[group].split(" ")[0]):
                yield PersonalData("phone", *found.span(group))


_FINDERS: tuple[Callable[[str], Iterator[PersonalData]], ...] = (
    _emails,
    _ibans,
    _cards,
    _ssns,
    _ips,
    _phones,
)
