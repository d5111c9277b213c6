/** Work that may wait until nothing else is to do, such as drawing charts beside a moving slider. */

const REST_MS = 150; // what is asked for again within this time is not done yet
const LATEST_MS = 500;

/** Do it when asking has come to rest and there is time; only what was asked for last is done. */
export function whenIdle(): { ask: (work: () => void) => void; stop: () => void } {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let idle: number | undefined;
  const hasIdle = "requestIdleCallback" in window;

  function stop() {
    clearTimeout(timer);
    if (idle !== undefined) cancelIdleCallback(idle);
    idle = undefined;
  }

  return {
    stop,
    ask(work) {
      stop();
      timer = setTimeout(() => {
        if (hasIdle) idle = requestIdleCallback(work, { timeout: LATEST_MS });
        else work();
      }, REST_MS);
    },
  };
}
