// Classes of pixels: a translucent image of their colors, and their fractions of the image.

const OPACITY = 0.55; // as of `mobilevit predict --save`

/**
 * Return a canvas of the size of a label map with the colors of the classes, to be drawn over the image.
 *
 * @param {{data: ArrayLike<number>, width: number, height: number}} labelMap - Class index of each pixel.
 * @param {{color: string}[]} classes - Colors are rgb(r, g, b).
 * @param {Set<number>} hidden - Classes whose pixels stay as they are.
 */
export function paintLabels({ data, width, height }, classes, hidden) {
  // One number per pixel, as a camera needs 20 images per second: A, B, G, R from its highest byte.
  const values = classes.map(({ color }, label) => {
    const [red, green, blue] = color.match(/\d+/g).map(Number);
    return hidden.has(label) ? 0 : ((Math.round(255 * OPACITY) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let index = 0; index < data.length; index++) pixels[index] = values[data[index]];
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Return pairs of a class index and its fraction of the pixels, largest first. */
export function countPixels({ data }, numClasses) {
  const counts = new Array(numClasses).fill(0);
  for (const label of data) counts[label]++;
  const fractions = counts.map((count, label) => [label, count / data.length]);
  return fractions.filter(([, fraction]) => fraction > 0).sort((a, b) => b[1] - a[1]);
}
