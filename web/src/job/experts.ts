/** What was routed to each expert of a mixture: a row for what shares one router. */
import type { Job, RankMap, Schemas } from "$lib/api";
import { sum } from "$lib/chart_rows";
import { planRequest, settingsOf } from "./what_if";

export interface Routing {
  /** Up to the projections, which get the same tokens. */
  name: string;
  tokens: number[];
  /** Of each expert, its mean share of its projections' Fisher information; empty where not measured. */
  fisher: number[];
  /** Those that train; null where all do. */
  trained: number[] | null;
}

type Facts = Record<string, { tokens?: number[]; fisher?: number[] }>;

export function routingOf(rankMap: RankMap): Routing[] {
  const found = new Map<string, { tokens: number[]; fisher: number[][]; trained: number[] | null }>();
  const selected = new Map(rankMap.modules.map(({ name, experts }) => [name, experts ?? null]));
  for (const [name, { tokens, fisher }] of Object.entries((rankMap.provenance.experts ?? {}) as Facts)) {
    if (!tokens) continue;
    const block = name.slice(0, Math.max(0, name.lastIndexOf("."))) || name;
    const at = found.get(block) ?? { tokens, fisher: [], trained: selected.get(name) ?? null };
    if (fisher) at.fisher.push(fisher);
    found.set(block, at);
  }
  return [...found].map(([name, { tokens, fisher, trained }]) => ({
    name,
    tokens,
    trained,
    fisher: fisher.length ? tokens.map((_, i) => sum(fisher.map((each) => each[i] ?? 0)) / fisher.length) : [],
  }));
}

/** Whether some experts train by what was measured of them, beside which random ones are a control. */
export function hasControl(job: Job): boolean {
  const { experts } = (job.request.allocation ?? {}) as { experts?: { select?: string } | null };
  return Boolean(experts) && experts?.select !== "random";
}

/** The body of POST /jobs/{id}/compare that holds the plan's experts against random ones. */
export function comparisonRequest(job: Job, rankMap: RankMap): Schemas["JobComparisonRequest"] {
  const { budget, allocation } = planRequest(job, rankMap, settingsOf(job, rankMap));
  const { method, ...shared } = allocation as { method: string };
  const methods = [...new Set([method, "uniform"])];
  const body = { budget, allocation: shared, methods: methods.length > 1 ? methods : ["uniform", "random"] };
  return body as unknown as Schemas["JobComparisonRequest"];
}

/** A bar for each value, in a box of one unit a bar and one high. */
export function bars(values: number[]): string {
  const most = Math.max(...values, Number.MIN_VALUE);
  return values.map((value, i) => `M${i + 0.1} 1V${1 - value / most}h.8V1z`).join("");
}
