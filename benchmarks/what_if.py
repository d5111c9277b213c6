"""Time from moving a slider of the page to the plan it asks for, in a real browser.

A real service and Chromium. First one step of the slider after another, each waited for: how
long the page waits before it asks, the answer takes, its numbers take to be put into the page,
and that takes to be seen; and when the chart below and the signal follow. Then a drag by the mouse: how old
what is seen is, counted from the movement that asked for it.

    python benchmarks/what_if.py
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.extend(
    str(Path(__file__).parents[1] / place)
    for place in ("clients/python", "service", "worker", "tests")
)
import httpx2
import numpy as np
from playwright.sync_api import Page
from redis import Redis

from fimlora import Statistics, TargetModule
from fimlora.statistics.statistics import HALVES, NULL
from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.store import JobStore
from server import ROWS, llama_statistics, running_server
from support.browser import running_browser
from support.results import make_result
from support.service import make_model
from support.valkey import running_valkey

ENCODER = {
    "attention.self.query": (384, 384),
    "attention.self.key": (384, 384),
    "attention.self.value": (384, 384),
    "attention.output.dense": (384, 384),
    "intermediate.dense": (384, 1536),
    "output.dense": (1536, 384),
}
# Heard before any script of the page runs: who asked when, and what came of it.
LISTEN = """
window.steps = [];
let moved;
document.addEventListener("input", (event) => {
  if (event.target.type === "range") moved = event.timeStamp;
}, true);
const plain = window.fetch;
window.fetch = async (...asked) => {
  const request = asked[0];
  if (!(request instanceof Request) || !request.url.endsWith("/allocate")) return plain(...asked);
  const step = request.headers.has("Prefer") ? { moved, asked: performance.now() } : null;
  const answer = await plain(...asked);
  answer.json = async () => {
    const read = JSON.parse(await answer.text());
    if (step) steps.push(Object.assign(step, { answered: performance.now() }));
    else if (steps.length) steps.at(-1).completed = performance.now();
    return read;
  };
  return answer;
};
window.listen = () => {
  const place = document.querySelector('section[aria-label="What if"]');
  new MutationObserver((changes) => {
    const now = performance.now();
    const step = steps.at(-1);
    if (!step) return;
    const isOf = (selector) => changes.some(({ target }) =>
      (target.parentElement ?? target).closest(selector));
    if (step.drawn) {
      if (isOf("[data-chart]")) step.charted = now;
    } else if (isOf("table:not([role=grid]) td")) {
      step.drawn = now;
      requestAnimationFrame(() => setTimeout(() => (step.seen = performance.now())));
    }
  }).observe(place, { subtree: true, childList: true, characterData: true, attributes: true });
};
"""
PARTS = {
    "waits": ("moved", "asked"),
    "answer": ("asked", "answered"),
    "into the page": ("answered", "drawn"),
    "seen": ("drawn", "seen"),
    "all": ("moved", "seen"),
    "chart": ("moved", "charted"),
    "signal": ("moved", "completed"),
}
Steps = Sequence[dict[str, float]]


def encoder_statistics(*, seed: int) -> Statistics:
    """Made-up statistics of a model with MiniLM's shapes: 37 modules."""
    random = np.random.default_rng(seed)
    modules = tuple(
        TargetModule(f"encoder.layer.{layer}.{kind}", *shape)
        for layer in range(6)
        for kind, shape in ENCODER.items()
    )
    modules = (*modules, TargetModule("pooler.dense", 384, 384))
    return replace(
        llama_statistics(1, seed=seed),
        modules=modules,
        base_parameters=22_713_216,
        row_energies={m.name: random.lognormal(0, 2, m.d_out) for m in modules},
        example_energies={m.name: random.lognormal(0, 2, 64) for m in modules},
    )


def as_measured(statistics: Statistics) -> Statistics:
    """With the values per example that its sums are made of, so that confidence is known."""
    n = statistics.n_examples
    parts = np.random.default_rng(0).dirichlet(np.full(n, 4.0), size=len(statistics.modules))
    names = [module.name for module in statistics.modules]
    sums = [statistics.row_energies[name].sum() for name in names]
    values = {name: whole * part for name, whole, part in zip(names, sums, parts, strict=True)}
    return replace(statistics, example_energies=values)


def made_job(client: Any, redis_url: str, data_dir: Path, parts: Sequence[Statistics]) -> str:
    """A job that succeeded with a signal: its worker is played here."""
    run, null, first, second = map(as_measured, parts)
    null = replace(null, null_targets=(64, 60))
    run = run.with_parts({NULL: null, HALVES[0]: first, HALVES[1]: second})
    body = {
        "base_model": "tiny", "budget": 8, "force": True,
        "dataset": {"source": "inline", "rows": ROWS},
    }  # fmt: skip
    job_id = str(client.post("/calibrate", json=body).raise_for_status().json()["id"])
    store = JobStore(Redis.from_url(redis_url))
    store.start(job_id, 1, worker="benchmark")
    store.succeed(job_id, 1, make_result(data_dir, statistics=run))
    Catalogue(store).file(store.get(job_id))
    return job_id


def step_by_step(page: Page, n: int) -> Steps:
    """Move the slider by keys, each time until all of the answer is there."""
    slider = page.get_by_label("Mean rank")
    slider.focus()
    for i in range(n):
        page.keyboard.press("ArrowRight" if i // 20 % 2 == 0 else "ArrowLeft")
        page.wait_for_function(
            "(n) => steps.length === n && steps.at(-1).completed && steps.at(-1).charted",
            arg=i + 1,
        )
    return page.evaluate("steps")


def by_drag(page: Page, n: int) -> Steps:
    """Move the slider by the mouse, up and down, as fast as the page is painted."""
    box = page.get_by_label("Mean rank").bounding_box()
    assert box is not None
    page.evaluate("steps.length = 0")
    y, places = box["y"] + box["height"] / 2, np.linspace(0.1, 0.9, 40)
    page.mouse.move(box["x"] + box["width"] * 0.1, y)
    page.mouse.down()
    for i in range(n):
        share = places[i % 40 if i // 40 % 2 == 0 else 39 - i % 40]
        page.mouse.move(box["x"] + box["width"] * share, y)
        page.wait_for_timeout(16)
    page.mouse.up()
    page.wait_for_timeout(1000)
    return page.evaluate("steps")


def work_of(client: httpx2.Client, job_id: str, n: int) -> list[str]:
    """Processor time of the service per answer, which other work on the machine leaves alone."""
    rows = []
    for name, headers in {"draft": {"Prefer": "return=minimal"}, "whole plan": {}}.items():
        began = processor_s(client)
        for i in range(n):
            body = {"budget": 4 + i % 16}
            client.post(f"/jobs/{job_id}/allocate", json=body, headers=headers)
        rows.append(f"| {name} | {1000 * (processor_s(client) - began) / n:.1f} |")
    return rows


def processor_s(client: httpx2.Client) -> float:
    """Processor time that the service has used."""
    lines = client.get("/metrics").text.splitlines()
    return float(next(s for s in lines if s.startswith("process_cpu_seconds_total")).split()[1])


def told(name: str, found: list[float]) -> str:
    """A row: median, 95th percentile and longest."""
    middle, late = statistics.median(found), float(np.percentile(found, 95))
    return f"| {name} | {middle:.1f} | {late:.1f} | {max(found):.1f} | {len(found)} |"


def rows_of(steps: Steps, names: Sequence[str]) -> list[str]:
    """A row per part."""
    found = {
        name: [
            step[PARTS[name][1]] - step[PARTS[name][0]]
            for step in steps
            if step.get(PARTS[name][0]) and step.get(PARTS[name][1])
        ]
        for name in names
    }
    return [told(name, times) for name, times in found.items() if times]


def report(page: Page, url: str, job_id: str, n: int) -> None:
    """Time one job's page."""
    page.goto("about:blank")
    page.goto(f"{url}/#/jobs/{job_id}")
    page.get_by_label("What if").wait_for()
    page.locator("[data-chart=depths] svg").first.wait_for()
    page.get_by_label("Mean rank").scroll_into_view_if_needed()
    page.evaluate("listen()")
    head = "ms | median | 95 % | longest | n |\n| --- | --- | --- | --- | --- |"
    print(f"| one step, {head}", *rows_of(step_by_step(page, n), list(PARTS)), sep="\n")
    dragged = by_drag(page, 2 * n)
    print(
        f"\n| a drag of {2 * n} moves, {head}", *rows_of(dragged, ["answer", "all"]), sep="\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print the steps, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_valkey() as redis_url:
        data_dir = Path(folder)
        make_model(data_dir / "models" / "tiny")
        with running_server(redis_url, data_dir) as client, running_browser() as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.add_init_script(LISTEN)
            url = str(client.base_url).rstrip("/")
            sizes = {
                37: [encoder_statistics(seed=seed) for seed in range(4)],
                224: [llama_statistics(32, seed=seed) for seed in range(4)],
            }
            for n_modules, parts in sizes.items():
                print(f"\n{n_modules} modules\n")
                job_id = made_job(client, redis_url, data_dir, parts)
                report(page, url, job_id, options.steps)
                print("\n| processor time of the service per answer | ms |\n| --- | --- |")
                print(*work_of(client, job_id, options.steps), sep="\n")
                if options.json:
                    print(json.dumps(page.evaluate("steps")))


if __name__ == "__main__":
    main()
