/** Write down what a build was made from, so that a test without Node sees whether it is stale. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import type { Plugin } from "vite";

const ROOT = join(import.meta.dirname, "..", "..");
// Folders and files that decide what the page is; `tests/service/web/test_built.py` has the same.
const INPUTS = [
  "web/src",
  "web/tools",
  "web/index.html",
  "web/docs.html",
  "web/package.json",
  "web/package-lock.json",
  "web/svelte.config.js",
  "web/tsconfig.json",
  "web/vite.config.ts",
  "clients/python/fimlora_contract/charts",
];
// Made from the API's description: its types, and the values that fields may have.
const MADE = "web/src/lib/schema.ts";

function* filesIn(path: string): Generator<string> {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found?.isDirectory()) {
    for (const name of readdirSync(path)) yield* filesIn(join(path, name));
  } else if (found) {
    yield relative(ROOT, path);
  }
}

/** The sha256 over the names and contents of all that a build is made from, in the order of names. */
export function digestOfSources(): { files: number; sha256: string } {
  const names = INPUTS.flatMap((path) => [...filesIn(join(ROOT, path))]);
  const counted = names.filter((name) => name !== MADE && !/\.pyc?$/.test(name)).sort();
  const whole = createHash("sha256");
  for (const name of counted) {
    const content = createHash("sha256").update(readFileSync(join(ROOT, name))).digest("hex");
    whole.update(`${content}  ${name}\n`);
  }
  return { files: counted.length, sha256: whole.digest("hex") };
}

export function sources(): Plugin {
  return {
    name: "sources",
    apply: "build",
    generateBundle() {
      const source = `${JSON.stringify(digestOfSources(), null, 2)}\n`;
      this.emitFile({ type: "asset", fileName: "sources.json", source });
    },
  };
}
