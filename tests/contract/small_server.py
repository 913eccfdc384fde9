"""An engine that is quick to start, for tests about processes: it is healthy and says who it is, no more.

Run by path; standard library only, because a dozen tests start it.
"""

import argparse
import json
import signal
import socketserver
from http.server import BaseHTTPRequestHandler

PAGES = {
    "/health": {"status": "ok"},
    "/v1/models": {"data": []},
    "/props": {"total_slots": 3, "build_info": "b"},
}


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = PAGES.get(self.path)
        body = json.dumps(page).encode()
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="small")
    parser.add_argument("--ignore-sigterm", action="store_true")
    options = parser.parse_args()
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Server(("127.0.0.1", options.port), Pages) as server:
        print(f"{options.name} is listening", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
