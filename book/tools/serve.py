"""Serve the built site as a host such as GitHub Pages does: compressed, and cached.

python book/tools/serve.py [PORT]
"""

import gzip
import sys
import threading
from functools import lru_cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SITE = Path(__file__).parents[2] / "_build" / "html"
TEXT = (".css", ".html", ".ipynb", ".js", ".json", ".svg", ".txt", ".xml")


@lru_cache(maxsize=512)
def compressed(path: str, changed: int) -> bytes:
    return gzip.compress(Path(path).read_bytes(), compresslevel=6)


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            path = path / "index.html"
        if not path.is_file() or path.suffix not in TEXT:
            return super().do_GET()
        body = compressed(str(path), path.stat().st_mtime_ns)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "max-age=600")
        super().end_headers()

    def log_message(self, *_) -> None:
        pass


def start(port: int = 0) -> ThreadingHTTPServer:
    """Serve the site from a thread; ``.server_port`` tells where, ``.shutdown()`` ends it."""
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    server = start(int(sys.argv[1]) if sys.argv[1:] else 8000)
    print(f"{SITE} at http://localhost:{server.server_port} (Ctrl-C ends it)")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.shutdown()
