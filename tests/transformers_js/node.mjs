// Read the arguments of the named function from stdin as JSON and print its results as JSON.

import { json } from "node:stream/consumers";

import { classify } from "./classify.mjs";
import { detect } from "./detect.mjs";
import { segment } from "./segment.mjs";

const run = { classify, detect, segment }[process.argv[2]];
console.log(JSON.stringify(await run(await json(process.stdin))));
