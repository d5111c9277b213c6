/** A job's events as they happen: server-sent events over fetch, which can send a key. */
import { addressOf, type JobEvent, send } from "./api";
import { refusalOf } from "./refusal";

const RETRY_MS = 2_000;
export const FINAL = new Set(["succeeded", "failed", "canceled"]);

interface Message {
  id: string;
  data: string;
}

/** The messages of a stream; comments and retry times are left out. */
export async function* messagesOf(body: ReadableStream<Uint8Array>): AsyncGenerator<Message> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const message = messageOf(block);
        if (message) yield message;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function messageOf(block: string): Message | null {
  const lines = block.split(/\r?\n/).map((line) => /^(\w+): ?(.*)$/.exec(line));
  const of = (name: string) => lines.filter((line) => line?.[1] === name).map((line) => line![2]!);
  const data = of("data");
  return data.length ? { id: of("id").at(-1) ?? "", data: data.join("\n") } : null;
}

/**
 * Every event of a job behind `after`, to its last one; a broken stream is taken up again.
 * Throws a `Refusal` if the service says no, and the `AbortError` of `signal`.
 */
export async function* follow(id: string, signal: AbortSignal, after = ""): AsyncGenerator<JobEvent> {
  for (;;) {
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    if (after) headers["Last-Event-ID"] = after;
    const path = addressOf(`/jobs/${encodeURIComponent(id)}/events`);
    const response = await send(path, { headers, signal }).catch((error: unknown) => {
      signal.throwIfAborted();
      return error instanceof TypeError ? null : Promise.reject(error); // away: come again
    });
    if (response && !response.ok && response.status < 429) throw await refusalOf(response);
    try {
      for await (const message of response?.ok && response.body ? messagesOf(response.body) : []) {
        const event = JSON.parse(message.data) as JobEvent;
        after = message.id || after;
        yield event;
        if (FINAL.has(event.status)) return;
      }
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof TypeError)) throw error;
    }
    await pause(RETRY_MS, signal);
  }
}

/** Wait, unless it is taken back. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
