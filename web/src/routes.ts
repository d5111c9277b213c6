/**
 * Every page, loaded when it is opened. Addresses are fragments (`#/jobs/job_…`): the API has
 * the plain paths, and none of its routes can be shadowed.
 *
 * `nav` puts a page into the navigation, in the order of this list.
 */
import type { Component } from "svelte";

export interface PageProps {
  params: Record<string, string>;
  query: URLSearchParams;
}

export interface Route {
  path: string;
  title: string;
  nav?: string;
  // A page takes of `PageProps` what it needs, or nothing.
  load: () => Promise<{ default: Component<any> }>;
}

export const routes: Route[] = [
  { path: "/jobs", title: "Jobs", nav: "Jobs", load: () => import("./jobs/Jobs.svelte") },
  { path: "/new", title: "New calibration", nav: "Calibrate", load: () => import("./jobs/New.svelte") },
  { path: "/jobs/:id", title: "Job", load: () => import("./job/Job.svelte") },
  { path: "/evaluations", title: "Evaluations", nav: "Evaluations", load: () => import("./evaluations/Evaluations.svelte") },
  { path: "/evaluations/:id", title: "Evaluation", load: () => import("./evaluations/Evaluation.svelte") },
  { path: "/compare", title: "Compare", nav: "Compare", load: () => import("./compare/Compare.svelte") },
  { path: "/pins", title: "Pins", nav: "Pins", load: () => import("./pins/Pins.svelte") },
  { path: "/operate", title: "Operate", nav: "Operate", load: () => import("./operate/Operate.svelte") },
];

export const HOME = "/jobs";
