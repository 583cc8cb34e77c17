"""A process that asks a server as fast as it answers, and prints what it saw as JSON.

    python -m kresnet.bench.load URL BODIES --requests 10000 --clients 16

BODIES is a file with a JSON list of request bodies. Only the standard library is used, so that
the client leaves the processor to the server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import threading
import time
from urllib.parse import urlsplit


class Load:
    """Clients that share a number of requests.

    Args:
        url: Of the POST endpoint.
        bodies: Sent in turn.
        requests: How many answers to wait for at most.
    """

    def __init__(self, url: str, bodies: list[bytes], requests: int) -> None:
        self.latencies_ms: list[tuple[float, float]] = []
        self.refused = 0
        self.broken: list[str] = []
        self.wrong: list[str] = []
        parts = urlsplit(url)
        self._address, self._path = parts.netloc, parts.path
        self._bodies = bodies
        self._left = iter(range(requests))
        self._lock = threading.Lock()
        self._start = time.perf_counter()

    def run(self, clients: int) -> None:
        """Ask until all is asked, or the server takes no more connections."""
        threads = [threading.Thread(target=self._client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        headers = {"Content-Type": "application/json"}
        while True:
            with self._lock:
                number = next(self._left, None)
            if number is None:
                break
            start = time.perf_counter()
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError:
                self.refused += 1
                break
            try:
                connection.request(
                    "POST", self._path, self._bodies[number % len(self._bodies)], headers
                )
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(repr(error))
                connection.close()
                continue
            end = time.perf_counter()
            if response.status == 503 and b"stopping" in content:
                self.refused += 1
                break
            if response.status == 200:
                self.latencies_ms.append((end - self._start, 1e3 * (end - start)))
            else:
                self.wrong.append(f"{response.status} {content[:200]!r}")
        connection.close()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("bodies")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with open(options.bodies, encoding="utf-8") as file:
        bodies = [json.dumps(body).encode() for body in json.load(file)]
    load = Load(options.url, bodies, options.requests)
    load.run(options.clients)
    print(
        json.dumps(
            {
                "latencies_ms": load.latencies_ms,
                "refused": load.refused,
                "broken": load.broken,
                "wrong": load.wrong,
            }
        )
    )


if __name__ == "__main__":
    main()
