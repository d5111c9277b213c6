/** Why methods are left out of a comparison: a line per reason, as the command line prints them. */
export function leftOut(reasons: Record<string, string>): string[] {
  const found = new Map<string, string[]>();
  for (const [method, sentence] of Object.entries(reasons)) {
    const start = `method '${method}' `;
    const reason = sentence.startsWith(start) ? sentence.slice(start.length) : sentence;
    found.set(reason, [...(found.get(reason) ?? []), method]);
  }
  return [...found].map(([reason, methods]) =>
    methods.length === 1
      ? reasons[methods[0]!]!
      : `${methods.join(", ")} (${methods.length} methods): each ${reason}`,
  );
}
