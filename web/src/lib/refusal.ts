/** A request that was not done: what happened, and the next step, as a person reads it. */
import type { components } from "./schema";

export type Problem = components["schemas"]["Problem"];

export interface FieldError {
  field: string;
  message: string;
}

export class Refusal extends Error {
  constructor(readonly problem: Problem) {
    super(problem.detail);
    this.name = "Refusal";
  }

  get status(): number {
    return this.problem.status;
  }

  get code(): string {
    return this.problem.code;
  }

  /** Whether the same again may be answered otherwise: the service is away, busy, or at fault. */
  get mayPass(): boolean {
    return [0, 408, 425, 429].includes(this.status) || this.status >= 500;
  }

  /** Where a body was wrong: names of fields with a sentence each. */
  get fields(): FieldError[] {
    const told = (this.problem.errors ?? []).filter(isFieldError);
    return told.map((each) => ({ ...each, field: each.field.replace(/^body\./, "") }));
  }
}

function isFieldError(entry: Record<string, unknown>): entry is Record<string, unknown> & FieldError {
  return typeof entry.field === "string" && typeof entry.message === "string";
}

export function isProblem(body: unknown): body is Problem {
  return typeof body === "object" && body !== null && "code" in body && "next_step" in body;
}

/** A problem that the service did not state itself, such as that it is away. */
export function ownProblem(code: string, title: string, detail: string, step: string): Problem {
  const type = `/problems/${code}`;
  const own = { type, title, status: 0, code, detail, next_step: step, errors: [] };
  return { ...own, instance: null, request_id: null };
}

export function unreachable(): Refusal {
  const step = "Check that the service runs and this machine has a network, then try again.";
  const detail = `nothing answers at ${location.origin}`;
  return new Refusal(ownProblem("unreachable", "The service does not answer", detail, step));
}

/** What was thrown, as a refusal. */
export function asRefusal(error: unknown): Refusal {
  if (error instanceof Refusal) return error;
  if (error instanceof TypeError) return unreachable(); // what fetch throws
  const detail = error instanceof Error ? error.message : String(error);
  const step = "Reload the page; report it with what you did if it comes again.";
  return new Refusal(ownProblem("page_fault", "The page has a fault", detail, step));
}

/** The refusal that an answer is. */
export async function refusalOf(response: Response): Promise<Refusal> {
  const body: unknown = await response.json().catch(() => null);
  return refusalFrom(response, body);
}

export function refusalFrom(response: Response, body: unknown): Refusal {
  if (isProblem(body)) return new Refusal(body);
  const detail = `HTTP ${response.status} without a problem document`;
  const step = "A proxy may have answered in place of the service; tell the operator.";
  const problem = ownProblem("unexpected_answer", "The answer is not the service's", detail, step);
  return new Refusal({ ...problem, status: response.status });
}

export function wasAborted(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
