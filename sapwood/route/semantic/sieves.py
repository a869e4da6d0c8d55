"""What is seen in a text by expressions alone: data of persons, wishes to be rid of instructions, need of thought.

They are sieves, not judges: quick, the same everywhere, and wrong now and then in both directions. A classifier's label is the finer one.
No repetition is without a bound that could begin in many places: what a text costs grows with its length, whatever is in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_MAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?![\w])"
)
_SSN = re.compile(r"(?<!\d)(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?!\d)")
_IP = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")

_JAILBREAK = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"\b(?:ignore|disregard|forget|override|skip)\b[^.\n]{0,40}\b(?:previous|prior|above|earlier|preceding|your|system|all)\b[^.\n]{0,30}"
        r"\b(?:instructions?|prompts?|rules?|guidelines?|directions?|training)\b",
        r"\b(?:do anything now|\bDAN\b[^.\n]{0,40}\b(?:mode|now|can|are)|developer mode|jailbreak(?:ed)?|god mode)\b",
        r"\b(?:you are|act as|pretend|roleplay|imagine)\b[^.\n]{0,60}\b(?:no|without|free of|not bound by)\b[^.\n]{0,25}"
        r"\b(?:restrictions?|filters?|limits?|limitations?|rules?|guidelines?|ethics|morals?|censorship)\b",
        r"\b(?:reveal|print|show|repeat|output|leak|tell me)\b[^.\n]{0,30}\b(?:system|initial|hidden|original|secret)\b[^.\n]{0,15}"
        r"\b(?:prompt|instructions?|message|rules)\b",
        r"\b(?:bypass|disable|turn off|evade|circumvent)\b[^.\n]{0,30}\b(?:safety|content|security|moderation|your)\b[^.\n]{0,20}"
        r"\b(?:filters?|polic(?:y|ies)|checks?|guidelines?|guardrails?|measures?)\b",
        r"\bfrom now on\b[^.\n]{0,60}\b(?:never refuse|always comply|answer everything|cannot refuse|will not refuse|must not refuse)\b",
        r"(?:<\|im_start\|>|\[INST\]|<<SYS>>|<\|system\|>|^[ \t]{0,20}#{2,}[ \t]{0,20}(?:system|new instructions?)\b)",
    )
)
_THOUGHT = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"\bstep[ -]by[ -]step\b|\bthink (?:carefully|hard|it through)\b|\breason(?:ing)? (?:about|through)\b",
        r"\b(?:prove|proof|derive|deduce|show that|disprove|by induction|contradiction)\b",
        r"\b(?:probability|expected value|integral|derivative|theorem|equation|polynomial|modulo|divisible|matrix|eigenvalue|how many ways)\b",
        r"\b(?:optimi[sz]e|trade-?offs?|time complexity|race condition|deadlock|root cause|worst case|compare and contrast)\b",
        r"\bif (?:and only if|all|every|each|no|some|none)\b.{0,300}\bthen\b|\b(?:puzzle|riddle|liars?|truth-?tellers?|logic)\b",
        r"\d\s{0,9}(?:[-+*/^=<>×÷]|mod)\s{0,9}\d.{0,300}\d|\b\d{1,20}(?:\.\d{1,20})?\s{0,9}(?:%|km|kg|hours?|days?|percent)\b.{0,300}\b\d",
        r"\b(?:beweise|schrittweise|Schritt für Schritt|Wahrscheinlichkeit|démontre|étape par étape|paso a paso|demuestra)\b",
    )
)


def personal(text: str) -> list[str]:
    """Which kinds of data of persons are in a text, never the data."""
    return [kind for kind, found in _PERSONAL.items() if found(text)]


def jailbreak(text: str) -> float:
    """From 0 to 1: more with each kind of attempt."""
    return _more_with(_JAILBREAK, text, 0.6)


def thought(text: str) -> float:
    """How much a text wants thought, from 0 to 1: more with each kind of sign."""
    return _more_with(_THOUGHT, text, 0.5)


def _more_with(patterns: tuple[re.Pattern[str], ...], text: str, one: float) -> float:
    hits = sum(pattern.search(text) is not None for pattern in patterns)
    return round(1 - (1 - one) ** hits, 3)


def _is_card(text: str) -> bool:
    """Whether a number's check digit is right (Luhn, ISO/IEC 7812)."""
    for match in _CARD.finditer(text):
        digits = [int(digit) for digit in match[0] if digit.isdigit()]
        doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
        if len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0:
            return True
    return False


def _is_iban(text: str) -> bool:
    """Whether an account's check digits are right (ISO 13616: modulo 97)."""
    for match in _IBAN.finditer(text):
        plain = match[0].replace(" ", "")
        if 15 <= len(plain) <= 34 and int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1:
            return True
    return False


_PERSONAL: dict[str, Callable[[str], object]] = {
    "mail": _MAIL.search,
    "card": _is_card,
    "iban": _is_iban,
    "phone": _PHONE.search,
    "ssn": _SSN.search,
    "ip": _IP.search,
}
