/** Work that may wait until nothing else is to do, such as drawing charts beside a moving slider. */

const LATEST_MS = 500;

/** Do it when there is time; of what is asked for meanwhile, only the last is done. */
export function whenIdle(): { ask: (work: () => void) => void; stop: () => void } {
  let waiting: number | undefined;
  const hasIdle = "requestIdleCallback" in window;
  const stop = () => {
    if (waiting !== undefined) (hasIdle ? cancelIdleCallback : clearTimeout)(waiting);
  };
  return {
    stop,
    ask(work) {
      stop();
      waiting = hasIdle ? requestIdleCallback(work, { timeout: LATEST_MS }) : window.setTimeout(work, 50);
    },
  };
}
