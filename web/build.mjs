// Builds the page into dist/: one script, one style sheet, one icon, the page, the licences of what is bundled, and each
// of them compressed. `--serve` builds again at every change and does not compress. `--out DIR` builds elsewhere.
import { build, context } from "esbuild";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));
const at = process.argv.indexOf("--out");
const out = at > 0 ? process.argv[at + 1] : join(here, "dist");
const watch = process.argv.includes("--serve");

const options = {
  absWorkingDir: here,
  entryPoints: { app: "src/main.tsx" },
  bundle: true,
  format: "esm",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: !watch,
  charset: "utf8",
  legalComments: "none",
  metafile: true,
  write: false,
  outdir: out,
  logLevel: "warning",
};

/** The packages that went into the bundle, by name. */
function packages(metafile) {
  const names = new Set();
  for (const path of Object.keys(metafile.inputs)) {
    const found = path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//);
    if (found) names.add(found[1]);
  }
  return [...names].sort();
}

/** Name, version, licence and its text, a package after the other. */
function licences(metafile) {
  const sheets = packages(metafile).map((name) => {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const files = readdirSync(folder).filter((file) => /^(licen[cs]e|notice|copying)/i.test(file)).sort();
    const texts = files.map((file) => readFileSync(join(folder, file), "utf8").trim());
    if (texts.length === 0 && license.includes("Apache-2.0")) texts.push(apache());
    if (license.includes("BSD-3-Clause") && name === "@bufbuild/protobuf") texts.push(varint(folder));
    if (texts.length === 0) throw new Error(`${name} comes without the text of its licence`);
    return `${name} ${version}\n${license}\n\n${texts.join("\n\n")}\n`;
  });
  const line = "=".repeat(80);
  const head = "The chat page holds code of these packages, each under its own licence.\n";
  return [head, ...sheets].join(`\n${line}\n\n`);
}

/** The Apache licence, from a package that brings its text, for those that only name it. */
function apache() {
  const text = readFileSync(join(here, "node_modules", "typescript", "LICENSE"), "utf8").replaceAll("\r", "");
  return text.slice(text.indexOf("Apache License")).trim();
}

/** The notice that a file of @bufbuild/protobuf carries for the part that comes from Google's. */
function varint(folder) {
  const text = readFileSync(join(folder, "dist/esm/wire/varint.js"), "utf8");
  const lines = text.split("\n").filter((line) => line.startsWith("//"));
  const notice = lines.map((line) => line.slice(2).trim()).join("\n");
  const start = notice.indexOf("Copyright 2008 Google");
  if (start < 0) throw new Error("@bufbuild/protobuf: the BSD notice is not where it was");
  return `Of parts of it:\n\n${notice.slice(start).trim()}`;
}

function files(result) {
  const bundle = Object.fromEntries(result.outputFiles.map((file) => [file.path.split("/").pop(), file.contents]));
  const version = (name) => createHash("sha256").update(bundle[name]).digest("hex").slice(0, 16);
  const page = readFileSync(join(here, "src/index.html"), "utf8").replace(
    /"\.\/(app\.(?:js|css))"/g,
    (_, name) => `"./${name}?v=${version(name)}"`,
  );
  return {
    "index.html": page,
    "app.js": bundle["app.js"],
    "app.css": bundle["app.css"],
    "icon.svg": readFileSync(join(here, "src/icon.svg")),
    "THIRD-PARTY-LICENSES.txt": licences(result.metafile),
  };
}

function write(result) {
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  for (const [name, content] of Object.entries(files(result))) {
    const bytes = Buffer.from(content);
    const brotli = { params: { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length } };
    const [br, gz] = [brotliCompressSync(bytes, brotli), gzipSync(bytes, { level: 9 })];
    writeFileSync(join(out, name), bytes);
    writeFileSync(join(out, `${name}.br`), br);
    writeFileSync(join(out, `${name}.gz`), gz);
    console.log(`${name}: ${bytes.length} bytes, gzip ${gz.length}, brotli ${br.length}`);
  }
}

if (watch) {
  // Serves the page, and hands everything else to a server that runs: node build.mjs --serve [http://127.0.0.1:50051]
  const { serve } = await import("./dev.mjs");
  await serve(await context({ ...options, sourcemap: "inline" }), files);
} else {
  write(await build(options));
}
