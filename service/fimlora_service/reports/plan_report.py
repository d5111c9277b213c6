"""What the report of a plan says: its signal and its warnings first, then where its ranks lie."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fimlora.adapter.rank_map import source_name
from fimlora.adapter.rank_map_picture import render_svg
from fimlora.errors import FimloraError
from fimlora.plan import RankPlan
from fimlora_contract.charts import PLAN_CHARTS, Rows, chart, specification
from fimlora_contract.charts.rows import plan_rows
from fimlora_contract.jobs import CalibrationResult, Job
from fimlora_contract.number_ranges import as_ranges
from fimlora_contract.rank_maps import RankMap, Share
from fimlora_service import errors
from fimlora_service.reports.drawing import NotDrawn, draw_charts
from fimlora_service.reports.pages import Figure, Report, Table, shown

MOST_CELLS = 2_500  # layers times types; what has more is told in tables
MOST_ROWS = 2_500  # of the table of modules
NOT_MEASURED = "Nobody has asked how much of this plan follows from the task."
TRAINING = (
    "Whether these ranks help on your task is decided by training, not by this page; uniform ranks "
    "are a strong default. fimlora evaluate trains both at equal parameters."
)


def plan_report(job: Job, result: CalibrationResult) -> Report:
    """The report of a calibration."""
    rank_map = result.rank_map
    figures, missing = _figures(job, rank_map)
    signal = rank_map.signal.sentence if rank_map.signal else NOT_MEASURED
    return Report(
        title=f"Rank plan of {source_name(job.resolved.get('base_model')) or 'a model'}",
        facts=facts_of(job),
        verdict=signal,
        notes=[*_confidence(rank_map), *(w.message for w in rank_map.warnings), TRAINING],
        figures=figures,
        tables=list(_tables(rank_map, job)),
        use=_use(job.id, result),
        digests=digests_of(result),
        missing=missing,
    )


def dated_picture(job: Job, rank_map: RankMap) -> str:
    """The rank map as a picture that names the day on which the job was accepted.

    Raises:
        NoPattern: It has too many cells, or is of a kind that is not known here.
    """
    if (n := n_cells(rank_map)) > MOST_CELLS:
        raise errors.NoPattern(
            f"the rank map has {n:,} cells and is drawn up to {MOST_CELLS:,}; its data is in "
            f"GET /jobs/{job.id}/artifacts/rank_map.json"
        )
    try:
        plan = RankPlan.from_json(rank_map.model_dump(mode="json"))
        return render_svg(plan, dated=f"{job.created_at:%Y-%m-%d}")
    except (FimloraError, ValueError, KeyError) as error:
        raise errors.NoPattern(f"the rank map of job {job.id!r} cannot be drawn") from error


def facts_of(job: Job) -> dict[str, str]:
    """Model, data and day, as far as the job knows them."""
    known = (("model", "base_model"), ("data", "dataset"), ("kept", "retain"))
    named = {word: source_name(job.resolved.get(role)) for word, role in known}
    labels = ", ".join(f"{name}={value}" for name, value in sorted(job.metadata.items()))
    made = {"day": f"{job.created_at:%Y-%m-%d}", "job": job.id, "labels": labels}
    return {name: value for name, value in (named | made).items() if value}


def digests_of(result: Any) -> dict[str, str]:
    """The content addresses of a result and of its files."""
    return {"result": result.digest} | {a.name: a.digest for a in result.artifacts}


def draw(names: tuple[str, ...], rows: Rows) -> tuple[list[Figure], str]:
    """The charts of these rows that there are, and why they lack if they do."""
    specs = {name: spec for name in names if (spec := chart(name, rows))}
    try:
        drawn = draw_charts(list(specs.values()))
    except NotDrawn:
        return [], "The charts could not be drawn; the tables hold the same numbers."
    captions = (str(specification(name)["description"]) for name in specs)
    return [Figure(svg, said) for svg, said in zip(drawn, captions, strict=True)], ""


def n_cells(rank_map: RankMap) -> int:
    """How many cells the picture of a rank map has, and how many rows its charts."""
    modules = rank_map.modules
    return len({(m.name.split(".")[0], m.layer, m.kind) for m in modules})


def _figures(job: Job, rank_map: RankMap) -> tuple[list[Figure], str]:
    if not rank_map.modules:
        return [], "The plan has no modules."
    if (n := n_cells(rank_map)) > MOST_CELLS:
        return (
            [],
            f"Pictures are left out: they are drawn up to {MOST_CELLS:,} cells, of {n:,}.",
        )
    try:
        picture = Figure(dated_picture(job, rank_map), "The rank of every module, layers down.")
    except errors.NoPattern as error:
        return [], f"{str(error).capitalize()}."
    charts, missing = draw(PLAN_CHARTS, plan_rows(rank_map.model_dump(mode="json")))
    return [picture, *charts], missing


def _confidence(rank_map: RankMap) -> Iterator[str]:
    if (found := rank_map.confidence) is not None:
        n = len(rank_map.modules)
        yield (
            f"{n - found.n_unresolved} of {n} ranks hold in {found.level:.0%} of other draws of "
            f"{found.n_examples:,} examples; a plan from one overlaps by "
            f"{found.expected_overlap:.1%}."
        )


def _tables(rank_map: RankMap, job: Job) -> Iterator[Table]:
    yield _spending(rank_map)
    if rank_map.shares is not None:
        if families := rank_map.shares.families:
            yield _shares("Where the parameters lie, by family", "family", families)
        yield _shares("Where the parameters lie, by type", "type", rank_map.shares.types)
        yield _shares("Where the parameters lie, by layers", "layers", rank_map.shares.depths)
    if experts := rank_map.provenance.get("experts"):
        yield _experts(experts, _trained_of(rank_map))
    yield _settings(rank_map, job)
    yield _modules(rank_map)


def _spending(rank_map: RankMap) -> Table:
    unit, value = rank_map.budget.get("unit"), rank_map.budget.get("value")
    spent = {"plan": rank_map.spent} | dict(sorted(rank_map.controls.items()))
    rows = [[name, shown(s["ranks"]), shown(s["parameters"])] for name, s in spent.items()]
    asked = f"Asked for: {'mean rank' if unit == 'rank' else unit} {shown(value)}."
    return Table("Plan and controls", ("", "ranks", "parameters"), rows, asked)


def _experts(
    experts: Mapping[str, Mapping[str, Any]], trained: Mapping[str, Sequence[int]]
) -> Table:
    """How evenly tokens were routed, the Fisher information lies, and which experts train."""
    head = ["experts of", "experts", "fewest tokens", "most", "without any", "highest share"]
    head += ["train", "of the tokens"] if trained else []
    rows = []
    for name, facts in list(experts.items())[:MOST_ROWS]:
        if tokens := facts.get("tokens"):
            most = f"{max(fisher):.1%}" if (fisher := facts.get("fisher")) else ""
            counts = (len(tokens), min(tokens), max(tokens), tokens.count(0))
            rows.append([name, *map(shown, counts), most])
            if trained:
                rows[-1] += _trained(trained.get(name), tokens)
    note = (
        f"One rank is planned for {'those experts' if trained else 'all experts'} of a projection"
        f"{' that train' if trained else ''}. Tokens are those routed to an expert; the highest share is that of one expert "
        "in the projection's Fisher information."
    )
    return Table("Tokens by expert", head, rows, note)


def _trained_of(rank_map: RankMap) -> dict[str, Sequence[int]]:
    """Which experts train, of every projection of which some do; empty where all of all do."""
    if all(m.experts is None for m in rank_map.modules):
        return {}
    return {
        m.name: range(m.n_experts) if m.experts is None else m.experts
        for m in rank_map.modules
        if m.n_experts and m.rank
    }


def _trained(experts: Sequence[int] | None, tokens: Sequence[int]) -> tuple[str, str]:
    if not experts:
        return "none", "0.0%"
    if len(experts) >= len(tokens):
        return "all", "100.0%"
    share = sum(tokens[expert] for expert in experts if expert < len(tokens)) / max(
        1, sum(tokens)
    )
    return as_ranges(experts), f"{share:.1%}"


def _shares(title: str, word: str, shares: Sequence[Share]) -> Table:
    head = (word, "modules", "ranks", "parameters", "share", "under uniform")
    rows = [
        [
            s.name, shown(s.modules), shown(s.ranks), shown(s.parameters),
            f"{s.share_of_parameters:.1%}",
            "" if (even := s.uniform_share_of_parameters) is None else f"{even:.1%}",
        ]
        for s in shares
    ]  # fmt: skip
    return Table(title, head, rows)


def _settings(rank_map: RankMap, job: Job) -> Table:
    facts = rank_map.provenance
    names = (
        "estimator", "aggregation", "n_examples", "n_batches", "batch_size", "max_length", "task",
        "dtype", "device", "engine", "model_class",
    )  # fmt: skip
    said: dict[str, Any] = {
        "method": rank_map.method,
        "rule": rank_map.rule,
        "lowest and highest rank": "{} to {}".format(*rank_map.bounds),
        "scaling": rank_map.scaling,
        "alpha / rank": rank_map.scale,
        **{name: facts[name] for name in names if name in facts},
        "attempts": job.attempt,
    }
    rows = [[name.replace("_", " "), shown(value)] for name, value in said.items()]
    return Table("Settings", ("setting", "value"), rows)


def _modules(rank_map: RankMap) -> Table:
    found, modules = rank_map.confidence, rank_map.modules
    head = ("module", "rank", *(("from", "to") if found else ()), "score", "parameters")
    rows = []
    for i, module in enumerate(modules[:MOST_ROWS]):
        ends = (found.lowest_ranks[i], found.highest_ranks[i]) if found else ()
        values = (module.rank, *ends, module.score, module.parameters)
        rows.append([module.name, *map(shown, values)])
    more = len(modules) - len(rows)
    note = f"And {more:,} more, in rank_map.json." if more else ""
    return Table("Every module", head, rows, note)


def _use(job_id: str, result: CalibrationResult) -> dict[str, str]:
    fetch = f"fimlora fetch {job_id} --output adapter"
    python = (
        "from peft import LoraConfig, get_peft_model\n\n"
        'model = get_peft_model(base_model, LoraConfig.from_pretrained("adapter"))'
    )
    if any(file.name == "adapter_model.safetensors" for file in result.artifacts):
        python = (
            "from peft import PeftModel\n\n"
            'model = PeftModel.from_pretrained(base_model, "adapter", is_trainable=True)'
        )
    use = {"Fetch the adapter's configuration:": fetch, "Train by it with PEFT:": python}
    if result.rank_map.provenance.get("dataset"):
        use["Find out whether these ranks help on your task:"] = (
            f"fimlora evaluate MODEL DATASET --plan mine={job_id}"
        )
    return use
