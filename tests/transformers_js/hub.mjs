// Settings of transformers.js in tests.

import { env } from "@huggingface/transformers";

/** Load models from a Hub only, and keep no cache that outlives it. */
export function useHub(url) {
  env.allowLocalModels = false;
  env.useBrowserCache = env.useWasmCache = false;
  env.cacheDir = "cache"; // Node requires a cache, and its default folder would outlive the test's Hub
  env.remoteHost = url;
}
