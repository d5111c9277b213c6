/**
 * Run something as long as the page is seen, and take it back while it is not: a browser opens six
 * connections to one service, and hidden tabs that hold streams would keep a seen one waiting.
 */
export function whileVisible(run: (signal: AbortSignal) => Promise<void>): () => void {
  let stopper: AbortController | null = null;
  const look = () => {
    if (document.hidden) {
      stopper?.abort();
      stopper = null;
    } else if (!stopper) {
      stopper = new AbortController();
      void run(stopper.signal);
    }
  };
  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    document.removeEventListener("visibilitychange", look);
    stopper?.abort();
  };
}
