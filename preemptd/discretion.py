"""Command lines without the secrets that they carry: ``docker run -e WANDB_API_KEY=...``."""

import re

_WORD = r"(?:key|token|secret|passw(?:or)?d|credentials?|webhook)"
_NAMED = re.compile(rf"(?i)([\w.-]*{_WORD}\"?'?[=:])(\"[^\"]*\"|'[^']*'|[^\s,;]+)")
_OPTION = re.compile(rf"(?i)(--?[\w.-]*{_WORD}\s+)(\S+)")
_USERINFO = re.compile(r"(\w://)[^\s/@]+@")
# What W&B's keys look like: 40 hexadecimal digits, also behind local-; wandb_v1_ and more.
_KEY = re.compile(r"(?:\b(?:local-)?[0-9a-f]{40}\b|\bwandb_v\d+_\w+)")


def discreet(text: str) -> str:
    """Put *** where a secret may stand. Rather once too often."""
    for pattern, kept in ((_NAMED, r"\1***"), (_OPTION, r"\1***"), (_USERINFO, r"\1***@"), (_KEY, "***")):
        text = pattern.sub(kept, text)
    return text
