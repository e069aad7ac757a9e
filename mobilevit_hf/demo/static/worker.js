// Loads the model and runs it, outside the page's thread, which stays responsive.

import * as ort from "./ort.wasm.min.mjs";
import { Resizer } from "./resize.js";

const MODEL = "model.onnx";
const RUNTIME = { mjs: "ort-wasm-simd-threaded.mjs", wasm: "ort-wasm-simd-threaded.wasm" };
const MAX_THREADS = 4;

let model; // contents of model.json
let session;
let resizer;
let canvas;

self.onmessage = async ({ data }) => {
  try {
    if (data.model) {
      await load(data.model);
      self.postMessage({ isReady: true });
    } else {
      self.postMessage({ id: data.id, ...(await run(data.bitmap)) });
    }
  } catch (error) {
    self.postMessage({ id: data.id, error: error.message ?? String(error) });
  }
};

/** Download runtime and model, and create the session. */
async function load(settings) {
  model = settings;
  let received = 0;
  const download = async (name) => {
    const response = await fetch(name);
    if (!response.ok) throw new Error(`${name}: HTTP ${response.status}`);
    const parts = [];
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      received += value.length;
      self.postMessage({ progress: received / model.bytes });
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  };
  const [weights, wasm] = await Promise.all([download(MODEL), download(RUNTIME.wasm)]);
  Object.assign(ort.env.wasm, {
    wasmBinary: wasm,
    wasmPaths: { mjs: new URL(RUNTIME.mjs, self.location).href },
    // Half of the cores: threads that wait for a core which the page or the camera uses slow down all others. More
    // than one needs the headers that the service worker adds.
    numThreads: self.crossOriginIsolated ? Math.min(MAX_THREADS, Math.max(1, navigator.hardwareConcurrency >> 1)) : 1,
  });
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(weights, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  await run(await createImageBitmap(new ImageData(1, 1))); // the first run takes several times as long
}

/** Run the model on an image: the outputs by name with its input's size, and the milliseconds from pixels to outputs. */
async function run(bitmap) {
  const start = performance.now();
  const { width, height } = bitmap;
  if (!resizer?.matches(width, height)) resizer = new Resizer(width, height, model.preprocessing);
  const pixels = resizer.resize(rowReader(bitmap));
  bitmap.close();
  const image = new ort.Tensor("uint8", new Uint8Array(pixels.buffer), [1, resizer.height, resizer.width, 3]);
  const results = await session.run({ image });
  // A label map stays a typed array, which is copied to the page in a fraction of the time.
  const copy = model.task === "image-segmentation" ? (data) => data.slice() : Array.from;
  const outputs = Object.fromEntries(Object.entries(results).map(([name, { data }]) => [name, copy(data)]));
  outputs.width = resizer.width;
  outputs.height = resizer.height;
  return { outputs, milliseconds: performance.now() - start };
}

/** Return a function that reads rows of a bitmap as RGBA pixels. */
function rowReader(bitmap) {
  return (row, count) => {
    if (canvas?.width !== bitmap.width || canvas.height < count) {
      canvas = new OffscreenCanvas(bitmap.width, count);
      canvas.context = canvas.getContext("2d", { willReadFrequently: true });
      canvas.context.globalCompositeOperation = "copy"; // else a transparent image is drawn over the one before
    }
    canvas.context.drawImage(bitmap, 0, -row);
    return canvas.context.getImageData(0, 0, bitmap.width, count).data;
  };
}
