"""What the bytes of a request take over HTTP where nothing is done with them: the floor of every request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from secure_infer.wire import api
from secure_infer.wire.http import AsyncHttp


async def seconds(message: bytes, reply: bytes, count: int) -> list[float]:
    """Seconds of so many exchanges, one after another, through the client that requests go through.

    Args:
        message: What is sent.
        reply: What comes back.
        count: How many exchanges.
    """
    with _responder(reply) as url:
        reach = await AsyncHttp.open([url], "any")
        try:
            return [(await reach.infer([message], "")).wall_s for _ in range(count)]
        finally:
            await reach.close()


@contextmanager
def _responder(reply: bytes) -> Iterator[str]:
    """Address of a server that reads requests and gives all of them this reply at once."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", api.OCTETS)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
