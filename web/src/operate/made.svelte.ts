/** The key that was made last, until its secret is put away: it outlives the page's own renewal. */
import type { Schemas } from "$lib/api";

export const made = $state<{ key: Schemas["NewApiKey"] | null }>({ key: null });
