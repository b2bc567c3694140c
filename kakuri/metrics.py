"""What is counted, in one place: names begin with kakuri_, units are base units, and no label is an id.

One rule: a metric's labels have few values, known beforehand; what has many belongs in the log.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

REGISTRY = CollectorRegistry(auto_describe=True)
"""This process's. Not the library's own, which anything that is imported may add to."""
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

HTTP_REQUESTS = Counter(
    "kakuri_http_requests",
    "HTTP requests answered, by the route's path as the route table has it.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
HTTP_SECONDS = Histogram(
    "kakuri_http_request_seconds",
    "Time from a request's headers to the end of its answer; watches and followed logs are left out.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
    registry=REGISTRY,
)
WATCHES = Gauge("kakuri_http_watches", "Watches that are open.", ["kind"], registry=REGISTRY)

RECONCILE_PASS_SECONDS = Histogram(
    "kakuri_reconcile_pass_seconds",
    "Time of a reconcile pass: load, plan, apply.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
    registry=REGISTRY,
)
RECONCILE_ACTIONS = Counter(
    "kakuri_reconcile_actions",
    "Actions that reconcile passes decided on, by kind.",
    ["action"],
    registry=REGISTRY,
)


def render() -> bytes:
    """All of it as Prometheus reads it."""
    return generate_latest(REGISTRY)
