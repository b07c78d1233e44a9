"""A server that stands in for the Hugging Face Hub: resolve addresses that name commit, size and sha256 of a file, and
send to another host for its bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from standins import Handler, Server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(Server):
    """One repository with its large files on a server of their own.

    Args:
        repository: `owner/name`.
        files: By name.
    """

    def __init__(self, repository: str, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.repository = repository
        self.files = dict(files)
        self.commit = COMMIT
        self.announces = True
        self.private: str | None = None
        self.cdn = Server({f"objects/{hashlib.sha256(body).hexdigest()}": body for body in files.values()})

    def __enter__(self) -> Hub:
        super().__enter__()
        self.cdn.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.cdn.__exit__(*error)
        super().__exit__(*error)

    def special(self, handler: Handler) -> bool:
        match = re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", handler.key)
        if match is None:
            return False
        if (
            match[1] != self.repository and match[1].lower() == self.repository.lower()
        ):  # an old spelling: sent on within the hub
            handler.answer(307, b"", {"Location": f"/{self.repository}/resolve/{match[2]}/{match[3]}"})
            return True
        if self.private is not None and handler.headers.get("Authorization") != f"Bearer {self.private}":
            return self.refuse(handler, 401, "RepoNotFound", "Invalid username or password.")
        if match[1] != self.repository:
            return self.refuse(handler, 401, "RepoNotFound", "Invalid username or password.")
        if match[2] not in ("main", self.commit):
            return self.refuse(handler, 404, "RevisionNotFound", f"Invalid rev id: {match[2]}")
        body = self.files.get(match[3])
        if body is None:
            return self.refuse(handler, 404, "EntryNotFound", "Entry not found")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"Location": f"{self.cdn.url.replace('127.0.0.1', 'localhost')}/objects/{digest}?Signature=secret",
                   "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes", "Cache-Control": "no-store"}  # fmt: skip
        if self.announces:
            headers |= {"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{digest}"'}
        handler.answer(302, f"Found. Redirecting to {headers['Location']}".encode(), headers)
        return True

    def refuse(self, handler: Handler, status: int, code: str, message: str) -> bool:
        handler.answer(status, message.encode(), {"X-Error-Code": code, "X-Error-Message": message})
        return True
