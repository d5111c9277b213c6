/** Two rank maps as one grid of differences: modules of one layer and type share a cell. */
import type { RankMap } from "$lib/api";

export interface Cell {
  before: number;
  after: number;
  change: number;
}

export interface Grid {
  layers: number[];
  kinds: string[];
  cells: Map<string, Cell>;
  largest: number;
}

export const MOST_STEPS = 4;

export function gridOf(before: RankMap, after: RankMap): Grid {
  const cells = new Map<string, Cell>();
  const layers = new Set<number>();
  const kinds = new Set<string>();
  for (const [side, map] of [["before", before], ["after", after]] as const) {
    for (const { layer, kind, rank } of map.modules) {
      if (layer == null) continue;
      const type = kind.replace(/\.\d+\./g, ".*.");
      const cell = cells.get(`${layer} ${type}`) ?? { before: 0, after: 0, change: 0 };
      cell[side] += rank;
      cell.change = cell.after - cell.before;
      cells.set(`${layer} ${type}`, cell);
      layers.add(layer);
      kinds.add(type);
    }
  }
  const changes = [...cells.values()].map(({ change }) => Math.abs(change));
  const ordered = [...layers].sort((a, b) => a - b);
  return { layers: ordered, kinds: [...kinds], cells, largest: Math.max(0, ...changes) };
}
