"""``python -m benchmarks.object_server FOLDER [MB_PER_S LATENCY_S]``: the little of S3 that reading needs, quick.

It prints its port. An emulator of all of S3 takes longer for a range than the network would, and is what would be
measured. With a bandwidth and a latency it answers as through a link that all requests share.
"""

import os
import re
import sys
import threading
import time
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Link:
    """What all requests share: bytes pass one after the other, at most so many a second, each answer after a while."""

    def __init__(self, mb_per_s: float = 0.0, latency_s: float = 0.0) -> None:
        """0 MB/s is without a bound."""
        self._seconds_per_byte = 1 / (mb_per_s * 1e6) if mb_per_s else 0.0
        self._latency_s = latency_s
        self._free = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        """Until ``count`` more bytes are through."""
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now) + count * self._seconds_per_byte
            left = self._free + self._latency_s - now
        if left > 0:
            time.sleep(left)


class Objects(BaseHTTPRequestHandler):
    """GET and HEAD of ``/bucket/key`` with ranges, from the files of a folder."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, *request: object, folder: Path, link: Link) -> None:
        self.folder, self.link = folder, link
        super().__init__(*request)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        """Of an object, or 404."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """An object or a range of it, or 404."""
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Says nothing of requests."""

    def _answer(self, *, body: bool) -> None:
        path = self.folder / self.path.split("?")[0].lstrip("/").partition("/")[2]
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, end = (int(match[1]), min(int(match[2] or size - 1) + 1, size)) if match else (0, size)
        self.link.wait(end - start if body else 0)
        self.send_response(206 if match else 200)
        headers = {
            "Content-Length": str(end - start),
            "ETag": '"0"',
            "Last-Modified": formatdate(0, usegmt=True),
            "Content-Type": "binary/octet-stream",
            **({"Content-Range": f"bytes {start}-{end - 1}/{size}"} if match else {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            with open(path, "rb") as file:
                self.wfile.flush()
                while start < end:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)


if __name__ == "__main__":
    answers = partial(Objects, folder=Path(sys.argv[1]), link=Link(*map(float, sys.argv[2:])))
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    print(server.server_port, flush=True)
    server.serve_forever()
