"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self.requests = Counter(
            "kresnet_requests",
            "Requests that were answered or refused.",
            ["api", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "kresnet_request_seconds",
            "Time from the first byte of a request to its answer.",
            ["api"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.images = Counter(
            "kresnet_images", "Images that were computed.", registry=self._registry
        )
        self.refused_images = Counter(
            "kresnet_refused_images",
            "Images that could not be decoded or were too large.",
            registry=self._registry,
        )
        self.batch_images = Histogram(
            "kresnet_batch_images",
            "Images in a batch.",
            buckets=_ROWS,
            registry=self._registry,
        )
        self.batch_requests = Histogram(
            "kresnet_batch_requests",
            "Requests in a batch.",
            buckets=_ROWS,
            registry=self._registry,
        )
        self.compute_seconds = Histogram(
            "kresnet_batch_seconds",
            "Time that a batch was computed.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.version_changes = Counter(
            "kresnet_version_changes",
            "Versions that were loaded, failed to load, or were freed.",
            ["result"],
            registry=self._registry,
        )

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a value that is read when it is asked for."""
        Gauge(name, documentation, registry=self._registry).set_function(read)

    def page(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)
