// Builds the UI into a folder: one page, one script, one style sheet. The same source gives the same bytes.
//
//   node build.mjs [FOLDER]        (dist beside this file, where the broker takes them from)

import { copyFile, mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = process.argv[2] ?? join(here, "dist");

/** What others wrote is passed on with their words. */
async function licence(name) {
  const text = await readFile(join(here, "node_modules", name, "LICENSE"), "utf8");
  return `${name}: ${text.trim().replaceAll("*/", "* /")}`;
}

await mkdir(target, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: { app: "src/main.tsx" },
  outdir: target,
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2022", "chrome109", "firefox115", "safari16.4"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  banner: { js: `/*\n${(await Promise.all(["preact", "uplot"].map(licence))).join("\n\n")}\n*/` },
  charset: "utf8",
  logLevel: "warning",
});
await copyFile(join(here, "src/index.html"), join(target, "index.html"));
