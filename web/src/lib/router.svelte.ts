/** Which page the address names, and how to go to another one. */
import { HOME, routes, type Route } from "../routes";

export interface Place {
  route: Route | null;
  params: Record<string, string>;
  query: URLSearchParams;
  path: string;
}

/** The parameters of a path that has a route's form, or null. */
export function paramsOf(form: string, path: string): Record<string, string> | null {
  const wanted = form.split("/");
  const given = path.split("/");
  if (wanted.length !== given.length) return null;
  const params: Record<string, string> = {};
  for (const [index, part] of wanted.entries()) {
    const value = given[index] ?? "";
    if (part.startsWith(":") && value) params[part.slice(1)] = decoded(value);
    else if (part !== value) return null;
  }
  return params;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not encoded by us: shown as it is, and refused by the API
  }
}

/** The place that a fragment names. */
export function placeOf(hash: string): Place {
  const [given = "", search = ""] = hash.replace(/^#/, "").split("?", 2);
  const path = given.replace(/\/+$/, "") || HOME;
  const query = new URLSearchParams(search);
  for (const route of routes) {
    const params = paramsOf(route.path, path);
    if (params) return { route, params, query, path };
  }
  return { route: null, params: {}, query, path };
}

class Router {
  place = $state.raw(placeOf(location.hash));

  constructor() {
    addEventListener("hashchange", () => {
      this.place = placeOf(location.hash);
    });
  }

  /** Change what the query of this page says, without a new entry in the history. */
  setQuery(changes: Record<string, string | null>): void {
    const query = new URLSearchParams(this.place.query);
    for (const [name, value] of Object.entries(changes)) {
      if (value) query.set(name, value);
      else query.delete(name);
    }
    const text = query.toString();
    history.replaceState(null, "", `#${this.place.path}${text ? `?${text}` : ""}`);
    this.place = { ...this.place, query };
  }
}

export const router = new Router();

/** The address of a page: `linkTo("/jobs", id)`. */
export function linkTo(path: string, ...parts: string[]): string {
  return ["#" + path, ...parts.map(encodeURIComponent)].join("/");
}

export function goTo(path: string, ...parts: string[]): void {
  location.hash = linkTo(path, ...parts);
}
