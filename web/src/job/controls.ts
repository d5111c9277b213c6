/** What a plan spends and what its controls do: several draws of one control are one line. */
import type { RankMap } from "$lib/api";
import { count } from "$lib/format";

export interface Spending {
  name: string;
  /** From the least to the most, over the draws. */
  ranks: [number, number];
  parameters: [number, number];
  /** The lowest and the highest rank of a module. */
  ends: [number, number];
}

function spread(values: number[]): [number, number] {
  return [Math.min(...values), Math.max(...values)];
}

export function controlsOf(rankMap: RankMap): Spending[] {
  const names = Object.keys(rankMap.controls);
  const kinds = [...new Set(names.map((name) => name.replace(/-\d+$/, "")))];
  const first = (kind: string) => (kind === "uniform" ? 0 : 1);
  return kinds
    .sort((a, b) => first(a) - first(b))
    .map((kind) => {
      const found = names
        .filter((name) => name.replace(/-\d+$/, "") === kind)
        .map((name) => rankMap.controls[name] as Record<string, unknown>);
      return {
        name: found.length > 1 ? `${kind}, ${found.length} draws` : kind,
        ranks: spread(found.map((each) => Number(each.ranks))),
        parameters: spread(found.map((each) => Number(each.parameters))),
        ends: spread(found.flatMap(endsOf)),
      };
    });
}

/** Of a draft they are told, of a whole plan they are those of its ranks. */
function endsOf({ lowest, highest, pattern }: Record<string, unknown>): number[] {
  if (typeof lowest === "number" && typeof highest === "number") return [lowest, highest];
  return Object.values((pattern ?? {}) as Record<string, number>);
}

export function planOf(rankMap: RankMap, name: string): Spending {
  const { ranks = 0, parameters = 0 } = rankMap.spent;
  return {
    name,
    ranks: [ranks, ranks],
    parameters: [parameters, parameters],
    ends: spread(rankMap.modules.map(({ rank }) => rank)),
  };
}

/** The lowest and the highest rank that the bounds allow, as far as some module can have them. */
export function boundsOf({ r_min, r_max, modules }: RankMap): [number, number] {
  const full = Math.max(...modules.map(({ d_in, d_out }) => Math.min(d_in, d_out)));
  const highest = Number.isFinite(full) ? Math.min(r_max, full) : r_max;
  return [Math.min(r_min, highest), highest];
}

/** A number, or from where to where. */
export function fromTo([low, high]: [number, number]): string {
  if (!Number.isFinite(low)) return "–";
  return low === high ? count(low) : `${count(low)} to ${count(high)}`;
}
