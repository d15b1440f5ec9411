// Validates AsyncAPI documents by AsyncAPI's own parser: `asyncapi.mjs FILE..`. Prints what the parser finds and what a
// document has. Exit code 1 if one is not valid.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

// Unlike `import`, it looks for packages in NODE_PATH.
const { Parser } = createRequire(import.meta.url)("@asyncapi/parser");

const SEVERITIES = ["error", "warning", "information", "hint"];
const parser = new Parser();
for (const file of process.argv.slice(2)) {
  const { document, diagnostics } = await parser.parse(await readFile(file, "utf8"));
  for (const { message, path, severity } of diagnostics) {
    console.log(`${SEVERITIES[severity]}: ${message} (${path.join(".")})`);
  }
  if (!document || diagnostics.some(({ severity }) => severity === 0)) {
    process.exitCode = 1;
    continue;
  }
  const count = (of) => `${document[of]().all().length} ${of}`;
  console.log(`valid: ${count("channels")}, ${count("operations")}, ${count("messages")}`);
}
