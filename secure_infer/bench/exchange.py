"""What the bytes of a request take over HTTP where nothing is done with them: the floor of every request."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from secure_infer.wire import api
from secure_infer.wire.http import AsyncHttp


@asynccontextmanager
async def responder(reply: bytes) -> AsyncIterator[AsyncHttp]:
    """A connection to a server that reads whatever it is asked to infer, and gives this reply at once."""

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
        reach = await AsyncHttp.open([f"http://127.0.0.1:{server.server_port}"], "any")
        try:
            yield reach
        finally:
            await reach.close()
            server.shutdown()
            thread.join()
