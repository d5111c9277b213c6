/** The form as the body of POST /calibrate; whether it is a good one is the API's to say. */
import type { Schemas } from "$lib/api";
import type { Method } from "$lib/choices";

export type Body = Schemas["CalibrationRequest"];

export interface Form {
  model: string;
  dataset: string;
  budget: string;
  method: Method;
  rMin: string;
  rMax: string;
  targets: string;
  saved: string;
  batches: string;
  batchSize: string;
  maxLength: string;
  weights: string;
  labels: string;
}

export function emptyForm(): Form {
  return {
    model: "", dataset: "", budget: "8", method: "fim", rMin: "", rMax: "", targets: "", saved: "",
    batches: "", batchSize: "", maxLength: "", weights: "", labels: "",
  };
}

/** A number if it is one, else the text: the API says what it wants. */
function numberOr(text: string): number | string {
  return /^\s*-?\d+(\.\d+)?\s*$/.test(text) ? Number(text) : text.trim();
}

/** Only what was filled in; the rest is the API's default. */
function filled(fields: Record<string, unknown>): Record<string, unknown> | undefined {
  const given = Object.entries(fields).filter(([, value]) => value !== "" && value !== undefined);
  return given.length ? Object.fromEntries(given) : undefined;
}

/** Names or endings as a list; one text that is no name, such as a pattern or all-linear, as it is. */
function targetsOf(text: string): string | string[] | undefined {
  const names = text.split(/[\s,]+/).filter(Boolean);
  if (!names.length) return undefined;
  const isOneText = names.length === 1 && (names[0] === "all-linear" || /[^\w.-]/.test(names[0]!));
  return isOneText ? text.trim() : names;
}

/** Names with commas or spaces between. */
function namesOf(text: string): string[] | undefined {
  const names = text.split(/[\s,]+/).filter(Boolean);
  return names.length ? names : undefined;
}

function labelsOf(text: string): Record<string, string> | undefined {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  const pairs = lines.map((line) => {
    const [name = "", ...value] = line.split("=");
    return [name.trim(), value.join("=").trim()];
  });
  return pairs.length ? Object.fromEntries(pairs) : undefined;
}

export function bodyOf(form: Form): Body {
  const calibration = filled({
    n_batches: numberOr(form.batches),
    batch_size: numberOr(form.batchSize),
    max_length: numberOr(form.maxLength),
  });
  const allocation = filled({
    method: form.method,
    r_min: numberOr(form.rMin),
    r_max: numberOr(form.rMax),
  });
  const adapter = filled({ init: form.weights });
  const fields = {
    base_model: form.model.trim(),
    dataset: form.dataset.trim(),
    budget: numberOr(form.budget),
    target_modules: targetsOf(form.targets),
    modules_to_save: namesOf(form.saved),
    calibration, allocation, adapter,
    metadata: labelsOf(form.labels),
  };
  return filled(fields) as unknown as Body;
}

export function isComplete(form: Form): boolean {
  return Boolean(form.model.trim() && form.dataset.trim() && form.budget.trim());
}

// Codes that are about one field, where the API's answer names none.
const FIELD_OF_CODE: [RegExp, string][] = [
  [/^(model_|unsafe_weights|unsupported_architecture)/, "base_model"],
  [/^(dataset_|source_)/, "dataset"],
  [/^budget_/, "budget"],
];

export function fieldOfCode(code: string): string | null {
  return FIELD_OF_CODE.find(([form]) => form.test(code))?.[1] ?? null;
}

/** A key under which a request is carried out once; also without a secure context. */
export function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
