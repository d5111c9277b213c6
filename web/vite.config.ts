import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";
import { sources } from "./tools/sources.ts";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const API = process.env.FIMLORA_URL ?? "http://127.0.0.1:8000";
// What `npm run dev` hands on to a running service.
const ROUTES =
  "^/(adapters|artifacts|cache|calibrate|compare|config|datasets|estimate|evaluations|healthz|jobs|keys|metrics|models|openapi.json|pins|rank-patterns|readyz|recommend|sweep|version|workers)";

export default defineConfig({
  base: "./", // a proxy may serve it below a path
  plugins: [svelte(), sources()],
  resolve: {
    alias: {
      $lib: here("src/lib"),
      $charts: here("../clients/python/fimlora_contract/charts"),
    },
  },
  build: {
    outDir: here("../service/fimlora_service/web/static"),
    emptyOutDir: true,
    assetsDir: "assets",
    // A data: address in a style sheet is refused by the page's policy for fonts.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    license: { fileName: "licenses.md" },
    chunkSizeWarningLimit: 2000,
    rolldownOptions: {
      // What charts are drawn of is a script by itself, so that a test holds it against Python's.
      input: { index: here("index.html"), docs: here("docs.html"), chart_rows: here("src/lib/chart_rows.ts") },
      preserveEntrySignatures: "strict",
    },
  },
  server: { proxy: { [ROUTES]: API }, fs: { allow: [here("..")] } },
});
