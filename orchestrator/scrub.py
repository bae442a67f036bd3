"""Removes credentials from text that leaves this process: tracking servers, reports, logs."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
_SECRET = r"token|secret|password|passwd|credentials?|api_?key|access_?key|signature"
_SECRET_KEY = re.compile(rf"(?:^|[_.-])(?:{_SECRET})$", re.IGNORECASE)
_PATTERNS = (
    # A password may contain `@` and `/`: after a colon, everything up to the last `@` of the word is userinfo.
    (re.compile(r"(?<=://)[^\s\"'/@:]*:[^\s\"'<>]*(?=@)"), HIDDEN),
    (re.compile(r"(?<=://)[^/@\s\"']+(?=@)"), HIDDEN),
    (
        re.compile(
            rf"(?i)([?&;](?:[\w.-]*(?:{_SECRET}|sig|key|key_?id|auth|code|policy)|awsaccesskeyid)=)[^&;\s\"'<>]+"
        ),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
            r"|(?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{16}|AIza[\w-]{35}|sk-[A-Za-z0-9_-]{20,}"
            r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
        ),
        HIDDEN,
    ),
    (re.compile(r"(?i)((?:bearer|basic)\s+)[A-Za-z0-9._~+/-]{8,}=*"), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"(?i)\b([\w.-]*(?:password|passwd|secret|api_?key|access_?key|auth_?token|hf_token)\s*[=:]\s*)"
            r"(?![*{\[\s])(?:\"[^\"]*\"|'[^']*'|[^\s,}\]]+)"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
)
_SECRET_VARIABLE = re.compile(r"TOKEN$|SECRET|PASSWORD|PASSWD|CREDENTIALS?$|(?:API|ACCESS)_?KEY", re.IGNORECASE)
_SHORTEST = 8
"""Minimum length of an environment variable's value that is searched for in texts."""


def scrub(text: str) -> str:
    """`text` without user names and passwords in URIs, secret query parameters, well-known token shapes, and the
    values of this process's environment variables with secret names."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name) and not value.startswith("/"):
            text = text.replace(value, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def has_secret(text: str) -> bool:
    """Whether `scrub` would change the text."""
    return scrub(text) != text


def scrub_tree(value: Any, key: str = "") -> Any:
    """`value` (nested dicts, lists, scalars) with every string scrubbed and values under secret keys hidden."""
    if isinstance(value, dict):
        return {k: scrub_tree(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [scrub_tree(v, key) for v in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if _SECRET_KEY.search(key) and value else scrub(value)
