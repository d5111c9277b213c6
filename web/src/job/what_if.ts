/** Another plan from what a job has measured: what is asked for, and how the job asked for it. */
import { costOf } from "$lib/chart_rows";
import type { Job, RankMap, Schemas } from "$lib/api";

export type PlanRequest = Schemas["PlanRequest"];
type Fields = Record<string, unknown>;

export const UNITS: Record<string, string> = {
  rank: "Mean rank",
  parameters: "Trainable parameters",
  fraction: "Fraction of the base model's parameters",
  bytes: "Bytes of the adapter",
};

export interface Settings {
  value: number;
  method: string;
  /** Null follows the budget: half and twice the mean rank. */
  floor: number | null;
  ceiling: number | null;
}

function object(value: unknown): Fields {
  return value !== null && typeof value === "object" ? (value as Fields) : {};
}

/** What the job itself was asked for. */
export function settingsOf(job: Job, rankMap: RankMap): Settings {
  const allocation = object(job.request.allocation);
  const numberOr = (value: unknown) => (typeof value === "number" ? value : null);
  return {
    value: Number(rankMap.budget.value),
    method: String(allocation.method ?? rankMap.method ?? "fim"),
    floor: numberOr(allocation.r_min),
    ceiling: numberOr(allocation.r_max),
  };
}

/** From where to where a budget slides, and by what step. */
export function rangeOf(unit: string, value: number): { min: number; max: number; step: number } {
  if (unit === "rank") return { min: 1, max: Math.max(32, Math.ceil(2 * value)), step: 1 };
  const step = unit === "fraction" ? value / 50 : Math.max(1, Math.round(value / 50));
  return { min: step * 5, max: step * 200, step };
}

function allocationOf(job: Job, settings: Settings): Fields {
  const earlier = object(job.request.allocation);
  return { ...earlier, method: settings.method, r_min: settings.floor, r_max: settings.ceiling };
}

function budgetOf(rankMap: RankMap, settings: Settings): Fields {
  const { unit, bytes_per_parameter } = rankMap.budget as Fields;
  const width = unit === "bytes" ? { bytes_per_parameter } : {};
  return { [String(unit)]: settings.value, ...width };
}

/** The body of POST /jobs/{id}/allocate. */
export function planRequest(job: Job, rankMap: RankMap, settings: Settings): PlanRequest {
  const adapter = object(job.request.adapter);
  const layout = Object.fromEntries(
    ["layout", "scale", "alpha", "rslora"].filter((name) => name in adapter).map((name) => [name, adapter[name]]),
  );
  const body = { budget: budgetOf(rankMap, settings), allocation: allocationOf(job, settings), adapter: layout };
  return body as unknown as PlanRequest;
}

/** The body of POST /calibrate that writes such a plan: the job's own, with other settings. */
export function calibrationRequest(job: Job, rankMap: RankMap, settings: Settings): Fields {
  const { validate_only: _1, force: _2, webhook: _3, deadline_s: _4, ...rest } = job.request;
  return { ...rest, budget: budgetOf(rankMap, settings), allocation: allocationOf(job, settings) };
}

/** Why a request cannot be sent again; nothing if it can. */
export function whyNotAgain(job: Job): string {
  return object(job.request.dataset).source === "inline"
    ? "The rows came in the request and are not kept: send them again with the request below."
    : "";
}

/** How many modules have another rank, and how many ranks moved. */
export function changesOf(before: RankMap, after: RankMap): { modules: number; ranks: number } {
  const earlier = new Map(before.modules.map(({ name, rank }) => [name, rank]));
  const changed = after.modules.map(({ name, rank }) => Math.abs(rank - (earlier.get(name) ?? 0)));
  return { modules: changed.filter(Boolean).length, ranks: changed.reduce((total, each) => total + each, 0) };
}

/** A job's rank map with the ranks of a draft, whose lists are in its order; what takes longer is not known. */
export function drafted(rankMap: RankMap, draft: Schemas["PlanDraft"]): RankMap {
  const { budget, method, rule, r_min, r_max, spent, ranks, scores, uniform_ranks: even } = draft;
  const uniform = even && Object.fromEntries(rankMap.modules.map(({ name }, i) => [name, even[i]!]));
  return {
    ...rankMap,
    budget,
    method,
    rule,
    r_min,
    r_max,
    spent,
    controls: { ...draft.controls, ...(uniform && { uniform: { ...draft.controls.uniform, pattern: uniform } }) },
    shares: null,
    signal: null,
    confidence: null,
    warnings: [],
    modules: rankMap.modules.map((module, i) => ({
      ...module,
      rank: ranks[i]!,
      score: scores[i]!,
      parameters: ranks[i]! * costOf(module),
    })),
  };
}
