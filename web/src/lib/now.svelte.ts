/** The time, told once a second to whatever shows how long ago something was. */
class Now {
  ms = $state(Date.now());

  constructor() {
    setInterval(() => {
      if (!document.hidden) this.ms = Date.now();
    }, 1000);
  }
}

export const now = new Now();
