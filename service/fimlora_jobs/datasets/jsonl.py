"""Where the rows of a JSONL file begin: service and worker must agree."""

from typing import BinaryIO

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def skip_byte_order_mark(file: BinaryIO) -> None:
    """Go to the first row of a file just opened; some editors put a mark of UTF-8 before it."""
    if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        file.seek(0)
