// One script and one style sheet: `node build.mjs FOLDER`. What lies in src/families and src/math
// is in it; nothing lists them.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const source = fileURLToPath(new URL("src", import.meta.url));
const files = (folder) =>
  readdirSync(join(source, folder), { recursive: true })
    .filter((name) => /\.jsx?$/.test(name))
    .sort()
    .map((name) => join(source, folder, name));

// Every family by its name; every function of every module of src/math by its place in `tangled`,
// as in "diffusion.schedule.entry".
const registries = {
  families: () => {
    const names = files("families").map((path) => [basename(path, ".jsx"), path]);
    const imports = names.map(([, path], n) => `import f${n} from ${JSON.stringify(path)};`);
    const entries = names.map(([name], n) => `${JSON.stringify(name)}: f${n}`);
    return `${imports.join("\n")}\nexport default { ${entries.join(", ")} };`;
  },
  math: () => {
    const names = files("math").map((path) => [relative(join(source, "math"), path).slice(0, -3).replace(/[\\/]/g, "."), path]);
    const imports = names.map(([, path], n) => `import * as m${n} from ${JSON.stringify(path)};`);
    const entries = names.map(([name], n) => `[${JSON.stringify(name)}, m${n}]`);
    return `${imports.join("\n")}
export default Object.fromEntries([${entries.join(", ")}].flatMap(([module, all]) =>
  Object.entries(all).map(([name, value]) => [module + "." + name, value])));`;
  },
};

const registry = {
  name: "registry",
  setup(bundle) {
    bundle.onResolve({ filter: /^registry:/ }, ({ path }) => ({ path: path.slice(9), namespace: "registry" }));
    bundle.onLoad({ filter: /.*/, namespace: "registry" }, ({ path }) => ({ contents: registries[path](), resolveDir: source }));
  },
};

const folder = process.argv[2];
await build({
  entryPoints: [join(source, "index.jsx")],
  outfile: join(folder, "widgets.js"),
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2020",
  charset: "utf8",
  jsx: "automatic",
  jsxImportSource: "preact",
  plugins: [registry],
  logLevel: "warning",
  absWorkingDir: fileURLToPath(new URL(".", import.meta.url)),
});
writeFileSync(join(folder, "widgets.css"), readFileSync(join(source, "widgets.css")));
