/**
 * The API, typed from its own description.
 *
 *     const page = await ask(api.GET("/jobs", { params: { query: { limit: 20 } } }));
 *
 * `ask` gives the body of an answer or throws a `Refusal`. All calls go through this file.
 */
import createClient from "openapi-fetch";
import type { Readable } from "openapi-typescript-helpers";
import { asRefusal, refusalFrom, refusalOf, wasAborted } from "./refusal";
import type { components, paths } from "./schema";
import { session } from "./session.svelte";

/** What the service answers with, by name: `Schemas["RankMap"]`. */
export type Schemas = { [Name in keyof components["schemas"]]: Readable<components["schemas"][Name]> };
export type Job = Schemas["Job"];
export type JobEvent = Schemas["JobEvent"];
export type RankMap = Schemas["RankMap"];
export { asRefusal, Refusal, wasAborted, type FieldError, type Problem } from "./refusal";

interface Answer<Body> {
  data?: Body;
  error?: unknown;
  response: Response;
}

/** Send a request as whoever signed in; what no route of the description covers, too. */
export async function send(request: Request | string, init?: RequestInit): Promise<Response> {
  const sent = new Request(request, init);
  const key = session.key;
  if (key) sent.headers.set("Authorization", `Bearer ${key}`);
  const response = await fetch(sent);
  if (response.status === 401 && key === session.key) session.refused();
  return response;
}

/** An address of the API, also where a proxy serves all of it below a path. */
export function addressOf(path: string): string {
  return new URL(path.replace(/^\//, ""), new URL(".", document.baseURI)).href;
}

export const api = createClient<paths>({ baseUrl: addressOf("/"), fetch: send });

/** The body of an answer. Throws a `Refusal`, or the `AbortError` of a request taken back. */
export async function ask<Body>(asked: Promise<Answer<Body>>): Promise<NonNullable<Body>> {
  let answer: Answer<Body>;
  try {
    answer = await asked;
  } catch (error) {
    throw wasAborted(error) ? error : asRefusal(error);
  }
  if (!answer.response.ok) throw refusalFrom(answer.response, answer.error);
  return answer.data as NonNullable<Body>;
}

/** A file of the service: what a link cannot fetch once a key is needed. */
export async function fetchFile(path: string): Promise<Blob> {
  const response = await send(addressOf(path)).catch((error: unknown) => {
    throw asRefusal(error);
  });
  if (!response.ok) throw await refusalOf(response);
  return response.blob();
}

/** Let the browser save a file under a name. */
export async function download(path: string, name: string): Promise<void> {
  const url = URL.createObjectURL(await fetchFile(path));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
