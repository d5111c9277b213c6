/** Work that may wait until nothing else is to do, such as drawing charts beside a moving slider. */

const APART_MS = 120; // what is asked for all the time is done no more often
const LATEST_MS = 500;

/** Do it when there is time; of what is asked for meanwhile, only the last is done. */
export function whenIdle(): { ask: (work: () => void) => void; stop: () => void } {
  let next: (() => void) | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let idle: number | undefined;
  const hasIdle = "requestIdleCallback" in window;

  function begin() {
    timer = undefined;
    if (hasIdle) idle = requestIdleCallback(work, { timeout: LATEST_MS });
    else work();
  }

  function work() {
    idle = undefined;
    const wanted = next;
    next = null;
    wanted?.();
  }

  return {
    stop() {
      next = null;
      clearTimeout(timer);
      if (idle !== undefined) cancelIdleCallback(idle);
      timer = idle = undefined;
    },
    ask(wanted) {
      next = wanted;
      if (timer === undefined && idle === undefined) timer = setTimeout(begin, APART_MS);
    },
  };
}
