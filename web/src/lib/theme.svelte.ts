/** Light or dark: what the system says, unless somebody chose. */

const KEPT_AS = "fimlora.theme";
export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const dark = matchMedia("(prefers-color-scheme: dark)");

function kept(): Theme {
  const value = localStorage.getItem(KEPT_AS);
  return THEMES.find((theme) => theme === value) ?? "system";
}

class Appearance {
  chosen = $state<Theme>(kept());
  #systemIsDark = $state(dark.matches);

  constructor() {
    dark.addEventListener("change", (event) => {
      this.#systemIsDark = event.matches;
    });
    this.choose(this.chosen);
  }

  /** Whether the page is dark now; charts redraw when it changes. */
  get isDark(): boolean {
    return this.chosen === "dark" || (this.chosen === "system" && this.#systemIsDark);
  }

  choose(theme: Theme): void {
    this.chosen = theme;
    localStorage.setItem(KEPT_AS, theme);
    document.documentElement.dataset.theme = theme;
  }
}

export const appearance = new Appearance();
