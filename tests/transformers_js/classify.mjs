// Inference with a published classifier, as in a web page or a Node program.

import { RawImage, Tensor, pipeline } from "@huggingface/transformers";

import { useHub } from "./hub.mjs";

/**
 * Run the classifier of a repository.
 *
 * @param {string} hub Endpoint of the Hub.
 * @param {string} repository Repository id.
 * @param {Object} options Options of the pipeline, such as the dtype.
 * @param {{values: number[], shape: number[]}[]} pixels Batches of preprocessed pixels.
 * @param {string} image URL of an image that needs no resizing.
 * @param {string[]} photos URLs of photos.
 * @returns Logits by batch, logits of the image, and top label by photo.
 */
export async function classify({ hub, repository, options, pixels, image, photos }) {
  useHub(hub);
  const classifier = await pipeline("image-classification", repository, options);

  const computeLogits = async (pixel_values) => (await classifier.model({ pixel_values })).logits.tolist();
  const results = { pixels: [], labels: [] };
  for (const { values, shape } of pixels) {
    results.pixels.push(await computeLogits(new Tensor("float32", Float32Array.from(values), shape)));
  }
  results.image = await computeLogits((await classifier.processor(await RawImage.read(image))).pixel_values);
  for (const photo of photos) {
    results.labels.push((await classifier(photo, { top_k: 1 }))[0].label);
  }
  return results;
}
