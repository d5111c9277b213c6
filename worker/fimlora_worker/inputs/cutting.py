"""Cut text before it is tokenised: of a long one only the first tokens are used.

No number of characters per token is safe for every tokenizer: blanks may be dropped, and a word
of any length may be one unknown token. So a text is cut to 32 characters for each token that is
wanted, and as long as those give too few, twice as many are tried, up to 1,024. A text of which
1,024 characters make less than a token is taken to end there. Of two long texts that share an
odd number of tokens, one may get the last that the other had got.
"""

from typing import Any

CHARS_PER_TOKEN = 32
MOST_CHARS_PER_TOKEN = 1_024
# The last tokens before a cut may be others than without it; these are not used.
MARGIN_TOKENS = 64


def cut_text(
    text: str,
    tokenizer: Any,
    *,
    max_length: int,
    from_end: bool = False,
    first: int = CHARS_PER_TOKEN,
    most: int = MOST_CHARS_PER_TOKEN,
) -> str:
    """As much of a text as decides its first tokens.

    Args:
        text: The text.
        tokenizer: A transformers tokenizer.
        max_length: How many tokens are used.
        from_end: Whether these are the last tokens, not the first.
        first: Characters per token that are tried first.
        most: Characters per token beyond which nothing is looked at.
    """
    wanted = max_length + MARGIN_TOKENS
    n_chars = wanted * first
    while n_chars < len(text):
        piece = text[-n_chars:] if from_end else text[:n_chars]
        if 2 * n_chars > wanted * most:
            return piece
        if len(tokenizer(piece, add_special_tokens=False)["input_ids"]) >= wanted:
            return piece
        n_chars *= 2
    return text
