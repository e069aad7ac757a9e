// Inference with a detector, as in a web page or a Node program.

import { env, pipeline } from "@huggingface/transformers";

import { useHub } from "./hub.mjs";

/**
 * Run a detector on photos.
 *
 * @param {string|null} hub Endpoint of the Hub; null for a local folder.
 * @param {string} model Repository id, or path of the folder `onnx`.
 * @param {string[]} photos URLs of photos.
 * @param {number} threshold Minimum score.
 * @param {Object} options Options of the pipeline, such as the dtype.
 * @returns Detections by photo.
 */
export async function detect({ hub, model, photos, threshold, options }) {
  if (hub) {
    useHub(hub);
    env.remotePathTemplate = "{model}/resolve/{revision}/onnx/";
  }
  const detector = await pipeline("object-detection", model, { subfolder: "", ...options });
  const detections = [];
  for (const photo of photos) {
    detections.push(await detector(photo, { threshold }));
  }
  return detections;
}
