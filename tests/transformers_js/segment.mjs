// Inference with a segmentation model, as in a web page or a Node program.

import { env, pipeline } from "@huggingface/transformers";

import { useHub } from "./hub.mjs";

/**
 * Run a segmentation model on photos.
 *
 * @param {string|null} hub Endpoint of the Hub; null for a local folder.
 * @param {string} model Repository id, or path of the folder `onnx`.
 * @param {string[]} photos URLs of photos.
 * @param {Object} options Options of the pipeline, such as the dtype.
 * @returns By photo, the name of the class of each pixel as an index into `names`, with the size of the photo.
 */
export async function segment({ hub, model, photos, options }) {
  if (hub) {
    useHub(hub);
    env.remotePathTemplate = "{model}/resolve/{revision}/onnx/";
  }
  const segmenter = await pipeline("image-segmentation", model, { subfolder: "", ...options });
  const results = [];
  for (const photo of photos) {
    const segments = await segmenter(photo);
    const { width, height } = segments[0].mask;
    const pixels = new Array(width * height).fill(-1);
    segments.forEach(({ mask }, index) => mask.data.forEach((value, i) => (value ? (pixels[i] = index) : null)));
    results.push({ names: segments.map(({ label }) => label), pixels, height, width });
  }
  return results;
}
