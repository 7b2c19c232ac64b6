// Whether dist/ is what the source gives: builds it elsewhere and compares. Compressed files are compared by what they
// hold, since other versions of Node compress differently. Run it as `npm run check`.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { brotliDecompressSync, gunzipSync } from "node:zlib";

const here = import.meta.dirname;
const fresh = mkdtempSync(join(tmpdir(), "candlewick-web-"));
try {
  execFileSync(process.execPath, [join(here, "build.mjs"), "--out", fresh], { stdio: ["ignore", "ignore", "inherit"] });
  const read = (folder) => Object.fromEntries(readdirSync(folder).map((name) => [name, unpack(name, readFileSync(join(folder, name)))]));
  const [kept, built] = [read(join(here, "dist")), read(fresh)];
  const names = [...new Set([...Object.keys(kept), ...Object.keys(built)])].sort();
  const wrong = names.filter((name) => !kept[name] || !built[name] || !kept[name].equals(built[name]));
  // Each compressed file holds the plain one beside it.
  wrong.push(...Object.keys(kept).filter((name) => /\.(br|gz)$/.test(name) && !kept[name].equals(kept[name.replace(/\.(br|gz)$/, "")])));
  if (wrong.length > 0) {
    console.error(`dist/ is not what the source gives (npm run build): ${[...new Set(wrong)].join(", ")}`);
    process.exitCode = 1;
  } else {
    console.log(`dist/ is what the source gives: ${names.length} files`);
  }
} finally {
  rmSync(fresh, { recursive: true, force: true });
}

function unpack(name, bytes) {
  if (name.endsWith(".br")) return brotliDecompressSync(bytes);
  return name.endsWith(".gz") ? gunzipSync(bytes) : bytes;
}
