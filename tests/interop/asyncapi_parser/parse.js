// Prints what the official parser finds wrong with an AsyncAPI document, as JSON: node parse.js FILE
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
console.log(
  JSON.stringify({
    operations: document ? document.operations().all().map((operation) => operation.id()) : [],
    diagnostics: diagnostics.map(({ code, message, path, severity }) => ({ code, message, path, severity })),
  }),
);
