// Read the arguments of `classify` from stdin as JSON and print its results as JSON.

import { json } from "node:stream/consumers";

import { classify } from "./classify.mjs";

console.log(JSON.stringify(await classify(await json(process.stdin))));
