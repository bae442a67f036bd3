"""Takes credentials out of text that leaves this process: tracking servers, reports, logs."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_SECRET = r"token|secret|password|passwd|credentials?|api_?key|access_?key|signature"
_SECRET_KEY = re.compile(rf"(?:^|[_.-])(?:{_SECRET})$", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"(?<=://)[^/@\s]+(?=@)"), HIDDEN),
    (re.compile(rf"(?i)([?&][\w.-]*(?:{_SECRET}|sig|key)=)[^&\s\"']+"), rf"\1{HIDDEN}"),
    (
        re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,})"),
        HIDDEN,
    ),
    (re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/-]{8,}=*"), rf"\1{HIDDEN}"),
)


def scrub(text: str) -> str:
    """`text` without user names and passwords in URIs, secret query parameters and well-known token shapes."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def scrub_tree(value: Any, key: str = "") -> Any:
    """`value` (nested dicts, lists, scalars) with every string scrubbed and values under secret keys hidden."""
    if isinstance(value, dict):
        return {k: scrub_tree(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [scrub_tree(v, key) for v in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if _SECRET_KEY.search(key) and value else scrub(value)
