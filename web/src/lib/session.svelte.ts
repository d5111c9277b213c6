/** The API key of this tab: kept until the tab is closed, and sent to this service only. */

const KEPT_AS = "fimlora.key";

class Session {
  key = $state<string | null>(sessionStorage.getItem(KEPT_AS));
  /** Set when the service has asked for a key that was not sent, or refused the one that was. */
  isWanted = $state(false);
  /** Whether the service has ever asked for one: where no key is configured, there is nothing to sign in to. */
  isClosed = $state(false);
  /** Counts sign-ins: what was refused is asked again when it changes. */
  generation = $state(0);

  refused(): void {
    this.isWanted = true;
    this.isClosed = true;
  }

  signIn(key: string): void {
    sessionStorage.setItem(KEPT_AS, key);
    this.key = key;
    this.isWanted = false;
    this.generation += 1;
  }

  signOut(): void {
    sessionStorage.removeItem(KEPT_AS);
    this.key = null;
    this.generation += 1;
  }
}

export const session = new Session();
