"""Secrets: known by the name of the variable that holds them or by their form, and taken out of every text that leaves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence

_SECRET_WORDS = ("SECRET", "TOKEN", "PASSWORD", "PASSWD", "API_KEY", "ACCESS_KEY", "CREDENTIAL", "AUTH_STRING", "PRIVATE_KEY")
# Variables that say where a secret lies, not what it is.
_PLACES = ("_FILE", "_PATH", "_DIR", "_URI")
# Shorter values are words that text is full of.
_LEAST_CHARACTERS = 6

_FORMS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (
        "a private key",
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        "<private key>",
    ),
    ("a URL with user:password", re.compile(r"(?<=://)[^\s/?#@'\"]*:[^\s/?#'\"]*@"), "<credentials>@"),
    (
        "a signed URL",
        re.compile(
            r"(?i)([?&](?:x-amz-(?:signature|security-token|credential)|x-goog-(?:signature|credential)|awsaccesskeyid|"
            r"signature|sig|access_token|auth_token|token|api_?key|password)=)[^&\s'\"]+"
        ),
        r"\1<signed>",
    ),
    ("an AWS key", re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA|ANPA|ABIA|ACCA)[A-Z0-9]{16}\b"), "<AWS key>"),
    (
        "a token",
        re.compile(
            r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|"
            r"pn[ub]_[A-Za-z0-9]{20,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|sk-[A-Za-z0-9_-]{20,}|"
            r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?)"
        ),
        "<token>",
    ),
    ("an authorization header", re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/-]{8,}=*"), r"\1 <token>"),
)
# Only for texts that leave, not for settings: `token: mean` may be the name of a pooling.
_ASSIGNED = re.compile(
    r"(?i)\b([a-z0-9_-]*(?:secret|token|passw(?:or)?d|api[_-]?key|access[_-]?key|credential|auth_string)[a-z0-9_-]*"
    r"[\"']?\s*[=:]\s*[\"']?)(?!<)[^\s\"',;&]{6,}"
)


_NAMES = re.compile(
    r"(?i)(?:^|[_-])(?:passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|"
    r"(?:auth|access|api|bearer|session|refresh)[_-]?token)\Z|\Atoken\Z"
)


def names_secret(name: str) -> bool:
    """Return whether a setting of this name holds a secret: `password`, not `pad_token`."""
    return _NAMES.search(name) is not None


def is_secret(name: str) -> bool:
    """Return whether an environment variable of this name is likely to hold a secret."""
    # TOKENIZERS_PARALLELISM and MAX_TOKENS hold none.
    upper = name.upper().replace("TOKENIZER", "").replace("TOKENS", "")
    return any(word in upper for word in _SECRET_WORDS) and not upper.endswith(_PLACES)


def _held() -> Iterator[tuple[str, str]]:
    """Yield (name, value) of what the environment holds in secret, user:password of URLs included; the longest first."""
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        if is_secret(name):
            found[value] = name
        for part in re.findall(r"://([^\s/?#@]*:[^\s/?#]*)@", value):
            found[part] = found[part.partition(":")[2]] = name
    for value in sorted(found, key=len, reverse=True):
        if len(value) >= _LEAST_CHARACTERS:
            yield found[value], value


def scrub(text: str) -> str:
    """Return `text` without the values of secret environment variables and without anything that has a secret's form."""
    return _scrub(text, list(_held()))


def scrub_each(texts: Iterable[str]) -> dict[str, str]:
    """Return {text: text without secrets}; for many, as the environment is read once."""
    held = list(_held())
    return {text: _scrub(text, held) for text in set(texts)}


def _scrub(text: str, held: Sequence[tuple[str, str]]) -> str:
    for name, value in held:
        text = text.replace(value, f"<{name}>")
    for _, form, instead in _FORMS:
        text = form.sub(instead, text)
    return _ASSIGNED.sub(r"\1<secret>", text)


def find_secret(text: str) -> str | None:
    """Return what secret a setting holds, in words that do not tell it, or None."""
    for name, value in _held():
        if value in text:
            return f"the value of the environment variable {name}"
    return next((what for what, form, _ in _FORMS if form.search(text)), None)


def scrub_error(error: Exception) -> Exception:
    """Take secrets out of an exception, its notes and those it came from, and return it.

    One whose text does not come from its arguments is replaced by a RuntimeError that says the same.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(scrub(item) if isinstance(item, str) else item for item in one.args)
        if getattr(one, "__notes__", None):
            one.__notes__ = [scrub(note) for note in one.__notes__]
        if one is not error and scrub(str(one)) != str(one):
            one.args = (f"{type(one).__name__}, whose text held a secret",)
        waiting += [one.__cause__, one.__context__]
    said = str(error)
    if scrub(said) == said:
        return error
    instead = RuntimeError(scrub(f"{type(error).__name__}: {said}"))
    instead.__suppress_context__ = True
    return instead
