/**
 * Draw a specification: loaded when the first chart is shown, as it is larger than all the rest.
 *
 * Expressions are interpreted, so that the page's policy needs no `unsafe-eval`; nothing is
 * fetched, whatever a specification names.
 */
import { expressionInterpreter } from "vega-interpreter";
import { loader, parse, View } from "vega";
import { compile, type TopLevelSpec } from "vega-lite";
import type { Row, Rows } from "./chart_rows";

type Specification = TopLevelSpec & { description: string; title: string; data: { name: string } };
const files = import.meta.glob<Specification>("$charts/*.vl.json", { eager: true, import: "default" });
const themes = import.meta.glob<Record<"light" | "dark", object>>("$charts/themes.json", {
  eager: true,
  import: "default",
});

const REFUSING = {
  ...loader(),
  load: () => Promise.reject(new Error("charts fetch nothing")),
  sanitize: () => Promise.reject(new Error("charts fetch nothing")),
};

/** A chart by name; names are those of the files. */
export function specification(name: string): Specification {
  const found = Object.entries(files).find(([path]) => path.endsWith(`/${name}.vl.json`));
  if (!found) throw new Error(`there is no chart ${name}`);
  return structuredClone(found[1]);
}

export interface Drawing {
  /** Show other rows in the same picture. */
  update: (rows: Rows) => Promise<void>;
  finalize: () => void;
}

const LABELS = 150; // beside a plot: names of types and arms, and the axis
const [NARROWEST, WIDEST] = [160, 720];

/** Draw a chart into an element, no wider than the room that it has where labels leave any. */
export async function draw(
  element: HTMLElement,
  name: string,
  rows: Rows,
  { isDark, room }: { isDark: boolean; room: number },
): Promise<Drawing> {
  const width = Math.max(NARROWEST, Math.min(WIDEST, room - LABELS));
  const drawing = await drawn(element, name, rows, { isDark, width });
  // How much the labels take is known when they are there.
  const excess = Math.ceil((element.querySelector("svg")?.getBoundingClientRect().width ?? 0) - room);
  if (excess <= 0 || width === NARROWEST) return drawing;
  drawing.finalize();
  return drawn(element, name, rows, { isDark, width: Math.max(NARROWEST, width - excess) });
}

async function drawn(
  element: HTMLElement,
  name: string,
  rows: Rows,
  { isDark, width }: { isDark: boolean; width: number },
): Promise<Drawing> {
  const { title: _title, ...spec } = specification(name) as unknown as Record<string, unknown>;
  const data = (spec.data as { name: string }).name;
  const inner = (spec.spec ?? spec) as { width?: unknown };
  inner.width = width;
  const config = { ...Object.values(themes)[0]![isDark ? "dark" : "light"], aria: false };
  const whole = { ...spec, datasets: { [data]: rows[data] ?? [] }, config } as unknown as TopLevelSpec;
  const { spec: vega } = compile(whole);
  const view = new View(parse(vega, undefined, { ast: true }), {
    expr: expressionInterpreter,
    loader: REFUSING as ReturnType<typeof loader>,
    renderer: "svg",
    container: element,
    hover: true,
  });
  await view.runAsync();
  leaveUnnamed(element);
  return {
    async update(rows) {
      // Copies, as the view writes into what it is given.
      await view.data(data, (rows[data] ?? []).map((row) => ({ ...row }))).runAsync();
      leaveUnnamed(element);
    },
    finalize: () => view.finalize(),
  };
}

/** What surrounds the chart says what it shows; its marks are not named one by one. */
function leaveUnnamed(element: HTMLElement) {
  for (const mark of element.querySelectorAll("svg [role], svg[role]")) {
    mark.removeAttribute("role");
    mark.removeAttribute("aria-roledescription");
  }
}
