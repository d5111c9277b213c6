/** What was routed to each expert of a mixture: a row for what shares one router. */
import type { RankMap } from "$lib/api";
import { sum } from "$lib/chart_rows";

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

/** A bar for each value, in a box of one unit a bar and one high. */
export function bars(values: number[]): string {
  const most = Math.max(...values, Number.MIN_VALUE);
  return values.map((value, i) => `M${i + 0.1} 1V${1 - value / most}h.8V1z`).join("");
}
