// What a page or a Node program does with a published classifier.

import { RawImage, Tensor, env, pipeline } from "@huggingface/transformers";

/**
 * Answers of the classifier in a repository.
 *
 * @param {string} hub Address of the Hub.
 * @param {string} repository Its id there.
 * @param {{values: number[], shape: number[]}[]} pixels Batches for the model as they are.
 * @param {string} image URL of an image that the image processor has nothing to resize in.
 * @param {string[]} photos URLs of photos.
 * @returns Logits by batch, the image's logits, and the top label by photo.
 */
export async function classify({ hub, repository, pixels, image, photos }) {
  env.allowLocalModels = false;
  env.useBrowserCache = env.useWasmCache = false;
  env.cacheDir = "cache"; // Node's: it needs one, and its own would outlive the Hub
  env.remoteHost = hub;
  const classifier = await pipeline("image-classification", repository, { dtype: "fp32" });

  const computeLogits = async (pixel_values) => (await classifier.model({ pixel_values })).logits.tolist();
  const answers = { pixels: [], labels: [] };
  for (const { values, shape } of pixels) {
    answers.pixels.push(await computeLogits(new Tensor("float32", Float32Array.from(values), shape)));
  }
  answers.image = await computeLogits((await classifier.processor(await RawImage.read(image))).pixel_values);
  for (const photo of photos) {
    answers.labels.push((await classifier(photo, { top_k: 1 }))[0].label);
  }
  return answers;
}
