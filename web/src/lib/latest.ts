/**
 * One question at a time: while one is out, only the latest of those that follow is kept.
 *
 * Whoever drags a slider asks as fast as there are answers, and the last question is always
 * answered.
 */
export interface Latest<Question> {
  ask: (question: Question) => void;
  /** Take back what is out and what waits. */
  stop: () => void;
}

export function latest<Question>(
  answer: (question: Question, signal: AbortSignal) => Promise<void>,
): Latest<Question> {
  let next: { question: Question } | null = null;
  let out: AbortController | null = null;

  async function work() {
    const mine = (out = new AbortController());
    while (next && !mine.signal.aborted) {
      const { question } = next;
      next = null;
      await answer(question, mine.signal);
    }
    if (out === mine) out = null;
  }

  return {
    ask(question) {
      next = { question };
      if (!out) void work();
    },
    stop() {
      next = null;
      out?.abort();
      out = null;
    },
  };
}
