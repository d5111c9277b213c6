/** A job in a few words: what was asked of which model, on which rows, for how much. */
import type { Job } from "$lib/api";
import { count, percent, size } from "$lib/format";
import { FINAL } from "$lib/events";
import { routes } from "../routes";

type Fields = Record<string, unknown>;

function fieldsOf(value: unknown): Fields {
  return typeof value === "object" && value !== null ? (value as Fields) : {};
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** A reference as it is typed: `namespace/name`, a registered name, the id of an upload. */
function reference(value: unknown): string {
  const { source, id, name, rows } = fieldsOf(value);
  if (source === "inline") return `${Array.isArray(rows) ? rows.length : ""} rows in the request`;
  return text(id) || text(name) || text(value);
}

/** The same where there is little room: an upload by the beginning of its id. */
export function short(name: string): string {
  return /^ds_[0-9a-f]{32}$/.test(name) ? `${name.slice(0, 11)}…` : name;
}

export function modelOf(job: Job): string {
  return reference(job.request.base_model);
}

export function datasetOf(job: Job): string {
  return reference(job.request.dataset);
}

/** The budget in its own unit. */
export function budgetOf(job: Job): string {
  const budget = job.request.budget;
  if (typeof budget === "number") return `rank ${budget}`;
  const { rank, parameters, fraction, bytes } = fieldsOf(budget);
  if (typeof rank === "number") return `rank ${rank}`;
  if (typeof parameters === "number") return `${count(parameters)} parameters`;
  if (typeof fraction === "number") return percent(fraction, 2);
  if (typeof bytes === "number") return size(bytes);
  return text(budget) || "–";
}

export function methodOf(job: Job): string {
  const { method, methods } = { ...fieldsOf(job.request.allocation), ...job.request };
  return text(method) || (Array.isArray(methods) ? methods.join(", ") : "");
}

export function labelsOf(job: Job): string[] {
  return Object.entries(job.metadata ?? {}).map(([name, value]) => `${name}=${value}`);
}

export function isOpen(job: Job): boolean {
  return !FINAL.has(job.status);
}

/** Seconds a job has run, until now if it runs. */
export function tookOf(job: Job, nowMs: number): number | null {
  if (!job.started_at) return null;
  const end = job.finished_at ? new Date(job.finished_at).getTime() : nowMs;
  return (end - new Date(job.started_at).getTime()) / 1000;
}

const PAGES = { calibration: "/jobs", evaluation: "/evaluations", comparison: "/comparisons" };

/** The page of a job; kinds without a page of their own have that of all jobs. */
export function pageOf(job: Pick<Job, "id" | "kind">): string {
  const own = PAGES[job.kind];
  const path = routes.some((route) => route.path === `${own}/:id`) ? own : "/jobs";
  return `#${path}/${encodeURIComponent(job.id)}`;
}

/** A search as the API takes it, labels written KEY=VALUE, and the words that are left. */
export function wordsOf(search: string): { labels: string[]; words: string } {
  const all = search.split(/\s+/).filter(Boolean);
  const isLabel = (word: string) => /^[^=]{1,64}=/.test(word);
  return { labels: all.filter(isLabel), words: all.filter((word) => !isLabel(word)).join(" ") };
}

/** Whether a job has all the words of a search, wherever. */
export function matches(job: Job, search: string): boolean {
  const parts = [job.id, modelOf(job), datasetOf(job), methodOf(job), ...labelsOf(job), job.owner];
  const whole = parts.join(" ").toLowerCase();
  return search.toLowerCase().split(/\s+/).every((word) => whole.includes(word));
}
