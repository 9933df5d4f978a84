"""What a message must name, whatever its wording."""

import re


def names(message: object, *parts: object) -> bool:
    """Whether a message names every part as a whole word or number: 3 is neither in 13 nor in 0.3."""
    text = " ".join(str(message).split())
    return all(re.search(rf"(?<!\w)(?<!\d\.){re.escape(str(part))}(?!\w|\.\d)", text) for part in parts)


def one_names(messages: object, *parts: object) -> bool:
    """Whether a single message of several names every part."""
    return sum(names(message, *parts) for message in messages) == 1  # type: ignore[attr-defined]
