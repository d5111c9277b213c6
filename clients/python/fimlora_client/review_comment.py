"""Keep one comment on a pull or merge request up to date: ``python -m fimlora_client.review_comment``.

The token comes by standard input, so that it is in no list of processes. A comment of an earlier
run is found by a mark that no reader sees, and replaced: a request has one, however often it runs.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2

MARK = "<!-- fimlora: {name} -->"
MOST = 60_000  # characters; GitHub takes 65,536
PAGE, PAGES = 100, 30
TIMEOUT_S = 20.0


class Refused(Exception):
    """The comment could not be written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the comment; 1 with a line on standard error where that does not work."""
    given = _parser().parse_args(arguments)
    token = sys.stdin.read().strip()
    headers = {"private-token": token} if given.gitlab else {"authorization": f"Bearer {token}"}
    try:
        text = given.file.read_text(encoding="utf-8")
        with httpx2.Client(headers=headers, timeout=TIMEOUT_S) as http:
            where = write(http, given, text)
    except (OSError, httpx2.HTTPError, Refused) as error:
        sys.stderr.write(f"no comment was written: {error}\n")
        return 1
    sys.stdout.write(f"{where}\n")
    return 0


def write(http: httpx2.Client, given: argparse.Namespace, text: str) -> str:
    """Replace the comment of an earlier run, or write the first; says which.

    Raises:
        Refused: The server does not let us.
    """
    mark = MARK.format(name=given.name)
    body = {"body": f"{mark}\n{_cut(text)}"}
    found = next((c for c in _comments(http, given) if c["body"].startswith(mark)), None)
    if found is None:
        _sound(http.post(_collection(given), json=body))
        return "wrote a comment"
    if given.gitlab:
        _sound(http.put(f"{_collection(given)}/{found['id']}", json=body))
    else:
        _sound(http.patch(f"{given.github}/issues/comments/{found['id']}", json=body))
    return "replaced the comment"


def _comments(http: httpx2.Client, given: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Every comment there is, page by page."""
    for page in range(1, PAGES + 1):
        answer = http.get(_collection(given), params={"per_page": PAGE, "page": page})
        comments = _sound(answer).json()
        for comment in comments:
            yield {"id": str(int(comment["id"])), "body": comment["body"] or ""}
        if len(comments) < PAGE:
            return


def _collection(given: argparse.Namespace) -> str:
    if given.gitlab:
        return f"{given.gitlab}/merge_requests/{given.number}/notes"
    return f"{given.github}/issues/{given.number}/comments"


def _sound(answer: httpx2.Response) -> httpx2.Response:
    if not answer.is_success:
        raise Refused(
            f"{answer.request.method} {answer.request.url.path} was answered with "
            f"{answer.status_code}; the token must be allowed to write comments"
        )
    return answer


def _cut(text: str) -> str:
    return text if len(text) <= MOST else f"{text[:MOST]}\n\n(cut)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fimlora_client.review_comment")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--github", metavar="URL", help="API address of the repository")
    where.add_argument("--gitlab", metavar="URL", help="API address of the project")
    parser.add_argument("--number", type=int, required=True, help="of the request")
    parser.add_argument("--name", default="ranks", help="a comment of its own per name")
    parser.add_argument("file", type=Path, help="Markdown; the token comes by standard input")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
