"""What a calibration would need, as a page to read before it is started."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from fimlora_client.cli.common.console import duration, out, show_json, size
from fimlora_contract.estimates import BudgetInterval, Estimate, EvaluationEstimate, WorkerFit

OUTCOMES = {
    "cached": "known already",
    "shared": "the open job of an equal request",
    "replanned": "planned anew from known statistics",
    "measured": "measured by a worker",
}


def show_estimate(estimate: Estimate, *, as_json: bool) -> None:
    """Print an estimate, a line for each thing it knows."""
    if as_json:
        show_json(estimate.model_dump(mode="json"))
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in _lines(estimate):
        table.add_row(Text(name, "dim"), Text(value))
    out().print(table)


def _lines(estimate: Estimate) -> Iterator[tuple[str, str]]:
    known_from = f", by {estimate.job_id}" if estimate.job_id else ""
    yield "would be", f"{OUTCOMES[estimate.outcome]}{known_from}"
    fetch, model, memory = estimate.fetch, estimate.model, estimate.memory
    yield "to fetch", f"{size(fetch.model_bytes)} of model, {size(fetch.dataset_bytes)} of data"
    yield "to measure", f"{estimate.batches:,} batches at most"
    parts = [f"{model.parameters:,} parameters"] if model.parameters is not None else []
    parts.append(f"{size(model.weight_bytes)} in {memory.dtype}")
    if model.target_modules is not None:
        parts.append(f"{model.target_modules} target modules")
    if model.saved_parameters is not None:
        parts.append(f"{model.saved_parameters:,} parameters saved whole, beside the budget")
    yield "model", ", ".join(parts)
    if model.budget:
        yield "budget", _interval(model.budget)
    elif model.note:
        yield "budget", model.note
    yield "memory", f"{size(memory.resident_bytes)} resident, or streamed:"
    streamed = (
        f"{size(memory.streamed_bytes)} on the device, {size(memory.boundary_bytes)} kept"
    )
    yield "", streamed
    if memory.note:
        yield "", memory.note
    for worker in memory.workers:
        yield "worker", f"{worker.name}: {_fit(worker)}"
    yield "queue", f"{estimate.queue.ahead} ahead, workers: {estimate.queue.workers}"
    if isinstance(estimate, EvaluationEstimate):
        yield "training", _training(estimate)


def _training(estimate: EvaluationEstimate) -> str:
    """How much would be trained."""
    took = "" if estimate.train_s is None else f", {duration(estimate.train_s)} in all"
    return (
        f"{estimate.n_runs} to {estimate.most_runs} runs of {estimate.n_steps} steps, "
        f"{estimate.n_arms} arms{took}"
    )


def _interval(budget: BudgetInterval) -> str:
    verdict = "feasible" if budget.is_feasible else "not feasible"
    return f"{verdict}; {budget.unit} from {budget.lowest:,g} to {budget.highest:,g}"


def _fit(worker: WorkerFit) -> str:
    """How a worker could run it."""
    where: str = worker.device
    if worker.memory_bytes is not None:
        where += f" with {size(worker.memory_bytes)}"
    if worker.resident:
        return f"{where}, fits resident"
    if worker.streamed:
        return f"{where}, fits streamed"
    return f"{where}, {'does not fit' if worker.streamed is False else 'unknown'}"
