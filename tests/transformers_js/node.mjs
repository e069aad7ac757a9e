// Reads a question for `classify` as JSON, and prints its answers as JSON.

import { json } from "node:stream/consumers";

import { classify } from "./classify.mjs";

console.log(JSON.stringify(await classify(await json(process.stdin))));
