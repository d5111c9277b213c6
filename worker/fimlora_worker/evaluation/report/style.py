"""Colours and type, for light and dark: one sheet for the page and for a picture alone.

Each arm has a colour and a dash, so that no arm is told by its colour only.
"""

LIGHT = {
    "page": "#ffffff", "ink": "#1b1f24", "quiet": "#5b6470", "rule": "#d8dde3", "panel": "#f5f7f9",
    "arm0": "#5b6470", "arm1": "#b3590a", "arm2": "#1f6feb", "arm3": "#0f7b6c", "arm4": "#8a3ffc",
    "arm5": "#c2255c",
}  # fmt: skip
DARK = {
    "page": "#14171b", "ink": "#e6e9ee", "quiet": "#9aa4b1", "rule": "#353c45", "panel": "#1c2127",
    "arm0": "#a3adba", "arm1": "#f0a04b", "arm2": "#6cb0ff", "arm3": "#4cc9b4", "arm4": "#c39bff",
    "arm5": "#ff8fb3",
}  # fmt: skip
N_COLOURS = 6
DASHES = ("7 4", "2 4", "none", "none", "10 3 2 3", "none")
MARKS = """
svg { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; }
svg text { fill: var(--ink); font-variant-numeric: tabular-nums; }
svg text.quiet { fill: var(--quiet); }
svg text.strong { font-weight: 600; }
.rule { stroke: var(--rule); stroke-width: 1; }
.zero { stroke: var(--quiet); stroke-width: 1.5; }
.sheet { fill: var(--page); }
"""


def style_sheet() -> str:
    """All rules that pictures need."""
    arms = "\n".join(
        f".line{i} {{ stroke: var(--arm{i}); stroke-width: 2.2; stroke-dasharray: {DASHES[i]}; "
        f"fill: none; }}\n.solid{i} {{ stroke: var(--arm{i}); stroke-width: 2.2; }}\n"
        f".dot{i} {{ fill: var(--arm{i}); }}\nsvg text.name{i} {{ fill: var(--arm{i}); "
        f"font-weight: 600; }}\n.band{i} {{ fill: var(--arm{i}); opacity: 0.12; }}"
        for i in range(N_COLOURS)
    )
    return (
        f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
        f"{MARKS}{arms}\n"
    )


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
