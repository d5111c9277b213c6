/** A rank map as a grid: layers down, module types across, and what a cell can show. */
import type { RankMap } from "$lib/api";
import { cellsOf, meanScore, patternOf, sum, type Cell } from "$lib/chart_rows";
import { count, figure } from "$lib/format";

export const VIEWS = {
  rank: "Rank",
  score: "Score over the mean",
  interval: "Width of the rank's interval",
  uniform: "Difference from uniform",
  base: "Difference",
} as const;
export type View = keyof typeof VIEWS;

/** Some views hold numbers on both sides of nothing. */
export const DIVERGING: readonly View[] = ["uniform", "base"];

export interface GridCell {
  cell: Cell;
  text: string;
  /** What its colour follows; null where it is not known. */
  value: number | null;
  /** From 0 to 8; with differences 4 is none. */
  step: number | null;
  /** In words; made when they are asked for, as a slider makes every cell anew. */
  said: () => string;
}

/** The cells of one family, or of a model that is one: its name is empty. */
export interface Band {
  family: string;
  types: string[];
  /** The types as the band's columns are headed. */
  heads: string[];
  layers: { label: string; cells: (GridCell | null)[] }[];
  loose: GridCell[];
}

export interface Grid {
  bands: Band[];
  low: number;
  high: number;
}

/** What a plan is held against, and what that is called. */
export interface Base {
  rankMap: RankMap;
  name: string;
}

/** What a view is called. */
export function nameOf(view: View, base: Base | null): string {
  return view === "base" && base ? `Difference from ${base.name}` : VIEWS[view];
}

/** Whether a map has what a view shows. */
export function hasView(view: View, rankMap: RankMap, base: Base | null): boolean {
  if (view === "base") return base !== null;
  // A draft of a plan has none yet: its cells are empty until the whole plan is there.
  if (view === "interval") return (rankMap.confidence ?? base?.rankMap.confidence) != null;
  if (view === "uniform") return patternOf(rankMap, "uniform") !== null;
  return view === "rank" || meanScore(rankMap) > 0;
}

export function gridOf(rankMap: RankMap, view: View, base: Base | null = null): Grid {
  const cells = cellsOf(rankMap);
  const look = looker(rankMap, view, base);
  const values = cells.map(look.value);
  const known = values.filter((value): value is number => value !== null);
  const furthest = Math.max(0, ...known.map(Math.abs));
  const [low, high] = DIVERGING.includes(view)
    ? [-furthest, furthest]
    : [known.length ? Math.min(...known) : 0, known.length ? Math.max(...known) : 0];
  const made = cells.map((cell, i) => {
    const value = values[i]!;
    const step = value === null ? null : stepOf(value, low, high, DIVERGING.includes(view));
    return { cell, value, step, text: value === null ? "–" : look.text(cell, value), said: () => look.said(cell) };
  });
  const families = new Map<string, GridCell[]>();
  for (const each of made) {
    const family = each.cell.modules[0]?.family ?? "";
    families.set(family, [...(families.get(family) ?? []), each]);
  }
  return { bands: [...families].map(([family, some]) => bandOf(family, some)), low, high };
}

function bandOf(family: string, made: GridCell[]): Band {
  const placed = made.filter(({ cell }) => cell.layer !== null);
  const types = [...new Set(placed.map(({ cell }) => cell.type))];
  const layers = [...new Set(placed.map(({ cell }) => cell.layer!))].sort((a, b) => a - b);
  const at = new Map(placed.map((each) => [`${each.cell.layer} ${each.cell.type}`, each]));
  return {
    family,
    types,
    heads: withoutStack(types),
    layers: layers.map((layer) => ({
      label: String(layer),
      cells: types.map((type) => at.get(`${layer} ${type}`) ?? null),
    })),
    loose: made.filter(({ cell }) => cell.layer === null),
  };
}

/** Types without the stack in front of them, where that is the same for all. */
function withoutStack(types: string[]): string[] {
  const stacks = new Set(types.map((type) => type.split(": ", 1)[0]));
  if (stacks.size > 1 || types.some((type) => !type.includes(": "))) return types;
  return types.map((type) => type.slice(type.indexOf(": ") + 2));
}

function stepOf(value: number, low: number, high: number, isDiverging: boolean): number {
  if (high <= low) return isDiverging ? 4 : 2;
  return Math.round((8 * (value - low)) / (high - low));
}

function looker(rankMap: RankMap, view: View, base: Base | null) {
  const mean = meanScore(rankMap);
  const uniform = patternOf(rankMap, "uniform");
  const earlier = base && new Map(base.rankMap.modules.map(({ name, rank }) => [name, rank]));
  const { lowest_ranks: lows, highest_ranks: highs } = rankMap.confidence ?? {};
  const average = (cell: Cell, of: (module: Cell["modules"][number], index: number) => number) =>
    sum(cell.modules.map((module, i) => of(module, cell.indices[i]!))) / cell.modules.length;
  const rank = (cell: Cell) => average(cell, (m) => m.rank);
  const score = (cell: Cell) => (mean ? average(cell, (m) => m.score) / mean : null);
  const width = (cell: Cell) => (lows && highs ? average(cell, (_, i) => highs[i]! - lows[i]!) : null);
  const fromUniform = (cell: Cell) => uniform && average(cell, (m) => m.rank - (uniform[m.name] ?? m.rank));
  const fromBase = (cell: Cell) => earlier && average(cell, (m) => m.rank - (earlier.get(m.name) ?? 0));
  const values: Record<View, (cell: Cell) => number | null> = {
    rank,
    score,
    interval: width,
    uniform: fromUniform,
    base: fromBase,
  };
  return {
    value: values[view],
    text(cell: Cell, value: number): string {
      const ranks = cell.modules.map((m) => m.rank);
      const [low, high] = [Math.min(...ranks), Math.max(...ranks)];
      if (view === "rank") return low === high ? String(low) : `${low}–${high}`;
      return DIVERGING.includes(view) ? signed(value) : figure(value, 2);
    },
    said(cell: Cell): string {
      const where = cell.layer === null ? cell.type : `layer ${cell.layer}, ${cell.type}`;
      const n = cell.modules.length;
      const ends = lows && highs && n === 1 ? `, between ${lows[cell.indices[0]!]} and ${highs[cell.indices[0]!]}` : "";
      const scored = score(cell);
      const parts = [
        `${n > 1 ? `${n} modules, mean rank` : "rank"} ${figure(rank(cell))}${ends}`,
        ...(scored === null ? [] : [`score ${figure(scored)} of the mean`]),
        ...(uniform ? [`${signed(fromUniform(cell) ?? 0)} to uniform`] : []),
        ...(earlier ? [`${signed(fromBase(cell) ?? 0)} to ${base!.name}`] : []),
        `${count(sum(cell.modules.map((m) => m.parameters)))} parameters`,
      ];
      return `${where}: ${parts.join("; ")}`;
    },
  };
}

export function signed(value: number): string {
  const text = figure(Math.abs(value), 2);
  if (text === "0") return "0";
  return value > 0 ? `+${text}` : `−${text}`;
}
