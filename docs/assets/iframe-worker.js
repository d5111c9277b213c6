// Browsers start no worker from a page that was opened as a file. There, a hidden frame does a
// worker's work, so that the search of this site needs neither a server nor the internet.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.ready = new Promise((resolve) => {
        const frame = document.createElement("iframe");
        frame.hidden = true;
        frame.addEventListener("load", () => resolve(this.start(frame.contentWindow, url)));
        document.documentElement.append(frame);
      });
    }

    start(inside, url) {
      const load = (address) =>
        new Promise((resolve) => {
          const script = inside.document.createElement("script");
          script.onload = script.onerror = resolve;
          script.src = new URL(address, document.baseURI).href;
          inside.document.head.append(script);
        });
      inside.importScripts = (...addresses) =>
        addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve());
      inside.postMessage = (data) => {
        const event = new MessageEvent("message", { data: structuredClone(data) });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      return load(url).then(() => inside);
    }

    postMessage(message) {
      const data = structuredClone(message); // as a worker has it: its own copy
      this.ready.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {}
  };
}
