"""The page of figures that GET /metrics shows, from where they are defined."""

INTRO = """# Metrics

What `GET /metrics` of the API shows, in the text format of Prometheus. Made by `make docs` from
the code. Workers have no port: what they count lies in Redis, and every API process shows it, so
take the maximum over API processes, not the sum, of what is marked *shared*. No label holds
anything that a client chose. The process's own `process_*` figures are there, too.

| name | type | labels | | means |
| --- | --- | --- | --- | --- |
"""


def metrics_page() -> str:
    """A table of all figures, by name."""
    from fimlora_service.operations.metrics import Metrics
    from fimlora_service.operations.store_metrics import COUNTERS, DURATION, GAUGES

    rows = [_row(f.name, "gauge", f.labels, f.means, shared=True) for f in GAUGES]
    rows += [
        _row(f"{f.name}_total", "counter", f.labels, f.means, shared=True) for f in COUNTERS
    ]
    rows.append(_row(DURATION.name, "histogram", (), DURATION.means, shared=True))
    metrics = Metrics()
    for own in (
        metrics.requests,
        metrics.accepted,
        metrics.refused,
        metrics.webhooks,
        metrics.build,
    ):
        (family,) = own.collect()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(_row(name, family.type, own._labelnames, family.documentation))  # noqa: SLF001
    return INTRO + "".join(sorted(rows))


def _row(
    name: str, kind: str, labels: tuple[str, ...], means: str, *, shared: bool = False
) -> str:
    listed = ", ".join(f"`{label}`" for label in labels)
    return f"| `{name}` | {kind} | {listed} | {'shared' if shared else ''} | {means} |\n"
