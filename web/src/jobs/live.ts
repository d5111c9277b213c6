/** Open jobs of a list, brought up to date while somebody looks. */
import { api, ask, type Job, type JobEvent } from "$lib/api";
import { follow, pause } from "$lib/events";

// Streams of one list: a browser has six connections to a service, and others need some.
const STREAMS = 2;
const EVERY_MS = 3_000;

/** A job with what an event tells of it. */
export function withEvent(job: Job, event: JobEvent): Job {
  const { status, attempt, progress, at } = event;
  const begins = status === "running" && (!job.started_at || attempt !== job.attempt);
  const started_at = status === "queued" ? null : begins ? (at ?? job.started_at) : job.started_at;
  return { ...job, status, attempt, started_at, progress: progress ?? job.progress };
}

async function one(id: string, signal: AbortSignal): Promise<Job> {
  return ask(api.GET("/jobs/{id}", { params: { path: { id } }, signal }));
}

async function stream(job: Job, update: (job: Job) => void, signal: AbortSignal): Promise<void> {
  let seen = job;
  for await (const event of follow(job.id, signal)) {
    seen = withEvent(seen, event);
    update(seen);
  }
  update(await one(job.id, signal));
}

async function poll(ids: string[], update: (job: Job) => void, signal: AbortSignal): Promise<void> {
  const open = new Set(ids);
  while (open.size) {
    await pause(EVERY_MS, signal);
    for (const id of open) {
      const job = await one(id, signal);
      if (job.finished_at) open.delete(id);
      update(job);
    }
  }
}

/**
 * Follow some jobs: the first by their streams, the rest by asking. Ends when all have ended; what
 * is refused ends it too, and the list shows its own refusal when it is read again.
 */
export async function followAll(
  jobs: Job[],
  update: (job: Job) => void,
  signal: AbortSignal,
): Promise<void> {
  const rest = jobs.slice(STREAMS).map(({ id }) => id);
  const streams = jobs.slice(0, STREAMS).map((job) => stream(job, update, signal));
  await Promise.allSettled([...streams, poll(rest, update, signal)]);
}
