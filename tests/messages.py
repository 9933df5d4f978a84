"""What a message must name, whatever its wording."""

import re
from collections.abc import Iterable


def mentions(message: object, *parts: object) -> bool:
    """Whether a message names every part as whole words or numbers: 3 is neither in 13 nor in 0.3."""
    text = " ".join(str(message).split())
    return all(re.search(rf"(?<!\w)(?<!\d\.){re.escape(str(part))}(?!\w|\.\d)", text) for part in parts)


def one_mentions(messages: Iterable[object], *parts: object) -> bool:
    """Whether one message of several, and no other, names every part."""
    return sum(mentions(message, *parts) for message in messages) == 1
