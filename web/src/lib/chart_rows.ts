/**
 * What charts are drawn of: rows from a rank map, and from what an evaluation found.
 *
 * The same as `fimlora_contract.charts.rows`, so that page, report and notebook show one thing.
 */
import type { RankMap, Schemas } from "./api";

export type Row = Record<string, string | number | boolean | null>;
export type Rows = Record<string, Row[]>;
type Module = RankMap["modules"][number];
type Evaluation = Schemas["EvaluationResult"];

const Z = 1.96; // standard errors to either end of a 95 % interval
const CONTROLS = ["uniform", "random"];

/** The modules that share a layer and a type, as experts do. */
export interface Cell {
  layer: number | null;
  type: string;
  place: number;
  modules: Module[];
  indices: number[];
}

/** The cells of a rank map, in the model's order. */
export function cellsOf(rankMap: RankMap): Cell[] {
  const cells = new Map<string, Omit<Cell, "type" | "place"> & { stack: string; kind: string }>();
  rankMap.modules.forEach((module, index) => {
    const kind = module.kind.replace(/(?<![^.])\d+(?![^.])/g, "*");
    const stack = module.layer == null ? "" : (module.name.split(/\.\d+\./)[0] ?? "");
    const key = JSON.stringify([stack, module.layer ?? null, kind]);
    const cell = cells.get(key) ?? { layer: module.layer ?? null, stack, kind, modules: [], indices: [] };
    cell.modules.push(module);
    cell.indices.push(index);
    cells.set(key, cell);
  });
  const found = [...cells.values()];
  const names = typeNames(found);
  const places = [...new Set(names)];
  return found.map(({ stack, kind, ...cell }, i) => {
    const type = names[i]!;
    void [stack, kind];
    return { ...cell, type, place: places.indexOf(type) };
  });
}

function typeNames(found: { stack: string; kind: string }[]): string[] {
  const kinds = [...new Set(found.map(({ kind }) => kind))];
  const short = new Map(shortNames(kinds).map((name, i) => [kinds[i]!, name]));
  const stacks = new Set(found.map(({ stack }) => stack).filter(Boolean));
  return found.map(({ stack, kind }) => {
    const name = short.get(kind) ?? kind;
    return stack && stacks.size > 1 ? `${stack}: ${name}` : name;
  });
}

/** As few trailing parts of each dotted name as tell it from all others. */
export function shortNames(kinds: string[]): string[] {
  const isUnique = (tail: string) =>
    kinds.filter((kind) => kind === tail || kind.endsWith(`.${tail}`)).length === 1;
  return kinds.map((kind) => {
    const parts = kind.split(".");
    const tails = parts.map((_, i) => parts.slice(parts.length - 1 - i).join("."));
    return tails.find(isUnique) ?? kind;
  });
}

/** The ranks of a control by module, or nothing if the map has none of that name. */
export function patternOf(rankMap: RankMap, control: string): Record<string, number> | null {
  const found = rankMap.controls[control] as { pattern?: Record<string, number> } | undefined;
  return found?.pattern ?? null;
}

/** Parameters that one rank trains; of fused experts, of those that train. */
export function costOf(module: Module & { experts?: number[] | null }): number {
  return (module.experts?.length ?? module.n_experts ?? 1) * (module.d_in + module.d_out);
}

export function meanScore(rankMap: RankMap): number {
  const total = sum(rankMap.modules.map(({ score }) => score));
  return rankMap.modules.length ? total / rankMap.modules.length : 0;
}

export function sum(values: number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

export function planRows(rankMap: RankMap): Rows {
  const uniform = patternOf(rankMap, "uniform") ?? {};
  const mean = meanScore(rankMap);
  const errors = rankMap.confidence?.standard_errors;
  const cells = cellsOf(rankMap).map(({ layer, type, place, modules, indices }) => {
    const n = modules.length;
    const even = modules.filter(({ name }) => name in uniform);
    const score = mean ? sum(modules.map((m) => m.score)) / n / mean : null;
    const known = errors ? indices.map((i) => errors[i] ?? 0) : null;
    const spread = known && mean ? (Z * Math.hypot(...known)) / n / mean : null;
    return {
      layer,
      type,
      place,
      modules: n,
      rank: sum(modules.map((m) => m.rank)) / n,
      uniform_rank: even.length ? sum(even.map((m) => uniform[m.name]!)) / n : null,
      score,
      score_low: score == null || spread == null ? null : Math.max(0, score - spread),
      score_high: score == null || spread == null ? null : score + spread,
      parameters: sum(modules.map((m) => m.parameters)),
      uniform_parameters: even.length
        ? sum(even.map((m) => uniform[m.name]! * costOf(m)))
        : null,
    };
  });
  return { cells, spending: spendingRows(rankMap) };
}

/** A row for the plan and one for each control. */
export function spendingRows(rankMap: RankMap): Row[] {
  const names = Object.keys(rankMap.controls).sort();
  const controls = [...names.filter((n) => n === "uniform"), ...names.filter((n) => n !== "uniform")];
  return [
    { name: "plan", parameters: rankMap.spent.parameters ?? 0, whose: "plan" },
    ...controls.map((name) => ({
      name,
      parameters: Number(rankMap.controls[name]?.parameters ?? 0),
      whose: "control",
    })),
  ];
}

export function evaluationRows(found: Evaluation): Rows {
  const isControl = ({ name }: { name: string }) => CONTROLS.includes(name);
  const arms = [...found.arms.filter(isControl), ...found.arms.filter((arm) => !isControl(arm))];
  const curves = arms.flatMap((arm) =>
    arm.curve.flatMap(([step, loss, spread]) =>
      loss == null
        ? []
        : [{ arm: arm.name, step: step ?? 0, loss, low: loss - (spread ?? 0), high: loss + (spread ?? 0) }],
    ),
  );
  const rates = arms.flatMap((arm) =>
    arm.rates.flatMap(({ rate, loss }) =>
      loss == null ? [] : [{ arm: arm.name, rate, loss, is_best: rate === arm.best_rate }],
    ),
  );
  const differences = found.differences
    .filter(({ metric, mean }) => metric === "loss" && mean != null)
    .map(({ arm, reference, mean, low, high }) => ({
      contrast: `${arm} − ${reference}`,
      arm,
      mean,
      low,
      high,
    }));
  return { curves, rates, differences };
}
