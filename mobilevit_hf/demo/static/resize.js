// Antialiased resize of 8-bit images, equal to that of torchvision and Pillow: the image processor of a model
// resizes with it in Python, so that the page gives the same answers.

// Rows that are read from a photo at a time: a photo of 48 megapixels has 190 MB, more than a phone may allocate.
const STRIP_ROWS = 256;

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: weightBicubic },
};

function weightBicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/**
 * Return the source pixels of a range of output pixels along one axis, and their weights as integers.
 *
 * @param {number} input - Source pixels.
 * @param {number} output - Output pixels.
 * @param {number} first - First output pixel of the range; may be negative, for padding.
 * @param {number} count - Output pixels of the range.
 * @param {{support: number, weight: function(number): number}} filter
 * @returns {{starts: Int32Array, taps: number, weights: Int32Array, shift: number}} For output pixel `first + i`, the
 *   sum of source pixel `starts[i] + j` times `weights[i * taps + j]` is the value times 2 ** shift.
 */
function planAxis(input, output, first, count, filter) {
  const scale = input / output;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const taps = Math.min(Math.ceil(support) * 2 + 1, input);
  const starts = new Int32Array(output);
  const exact = new Float64Array(output * taps);
  let largest = 0;
  for (let i = 0; i < output; i++) {
    const center = scale * (i + 0.5);
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const size = Math.min(Math.min(Math.trunc(center + support + 0.5), input) - start, taps);
    starts[i] = start;
    let total = 0;
    for (let j = 0; j < size; j++) total += exact[i * taps + j] = filter.weight((j + start - center + 0.5) / stretch);
    for (let j = 0; j < size; j++) largest = Math.max(largest, (exact[i * taps + j] /= total));
  }
  // The highest precision at which a weight fits 16 bits, as in Python.
  let shift = 0;
  while (shift < 22 && Math.trunc(0.5 + largest * 2 ** (shift + 1)) < 2 ** 15) shift++;
  const plan = { starts: new Int32Array(count), taps, weights: new Int32Array(count * taps), shift };
  for (let i = 0; i < count; i++) {
    const pixel = first + i;
    if (pixel < 0 || pixel >= output) continue; // padding: weights of zero
    plan.starts[i] = Math.min(starts[pixel], input - taps);
    const skipped = starts[pixel] - plan.starts[i]; // at the end, so that all taps are inside the image
    for (let j = 0; j + skipped < taps; j++) {
      const value = exact[pixel * taps + j] * 2 ** shift;
      plan.weights[i * taps + j + skipped] = Math.trunc(value + Math.sign(value) * 0.5);
    }
  }
  return plan;
}

/** Return the size of the resized image, before the crop, and the first pixel of the crop in it. */
function placeCrop(width, height, { resize, crop }) {
  let resized;
  if ("shortest_edge" in resize) {
    const [short, long] = [Math.min(width, height), Math.max(width, height)];
    const edge = Math.trunc((resize.shortest_edge * long) / short);
    resized = width < height ? [resize.shortest_edge, edge] : [edge, resize.shortest_edge];
  } else {
    resized = [resize.width, resize.height];
  }
  const size = crop ? [crop.width, crop.height] : resized;
  const first = size.map((pixels, axis) => {
    const margin = resized[axis] - pixels;
    return margin < 0 ? -Math.trunc(-margin / 2) : Math.trunc(margin / 2);
  });
  return { resized, size, first };
}

/** Resizes and crops images of one size. */
export class Resizer {
  /**
   * @param {number} width - Width of the images in pixels.
   * @param {number} height - Height of the images in pixels.
   * @param {{resize: object, crop: object, resample: string}} preprocessing - Fields of the image processor: `resize`
   *   is {shortest_edge} or {height, width}, `crop` is {height, width} or null, `resample` is a key of FILTERS.
   */
  constructor(width, height, preprocessing) {
    const { resized, size, first } = placeCrop(width, height, preprocessing);
    const filter = FILTERS[preprocessing.resample];
    [this.sourceWidth, this.sourceHeight] = [width, height];
    [this.width, this.height] = size;
    this.columns = planAxis(width, resized[0], first[0], size[0], filter);
    this.rows = planAxis(height, resized[1], first[1], size[1], filter);
    this.firstRow = Math.min(...this.rows.starts);
    this.endRow = Math.max(...this.rows.starts) + this.rows.taps;
    this.narrowed = new Uint8ClampedArray((this.endRow - this.firstRow) * this.width * 3);
  }

  /** Return whether the resizer is for images of this size. */
  matches(width, height) {
    return width === this.sourceWidth && height === this.sourceHeight;
  }

  /**
   * Resize an image.
   *
   * @param {function(number, number): Uint8ClampedArray} readRows - Returns the RGBA pixels of a number of rows, from a
   *   first row on.
   * @returns {Uint8ClampedArray} RGB pixels (height, width, 3).
   */
  resize(readRows) {
    for (let row = this.firstRow; row < this.endRow; row += STRIP_ROWS) {
      const count = Math.min(STRIP_ROWS, this.endRow - row);
      this.narrow(readRows(row, count), count, (row - this.firstRow) * this.width * 3);
    }
    return this.shorten();
  }

  /** Resize rows of RGBA pixels horizontally, into `narrowed` from an offset on. */
  narrow(pixels, count, offset) {
    const { starts, taps, weights, shift } = this.columns;
    const { narrowed, width, sourceWidth } = this;
    const half = 1 << (shift - 1);
    for (let row = 0, target = offset; row < count; row++) {
      for (let column = 0; column < width; column++, target += 3) {
        let red = half;
        let green = half;
        let blue = half;
        let source = (row * sourceWidth + starts[column]) * 4;
        for (let j = column * taps, end = j + taps; j < end; j++, source += 4) {
          const weight = weights[j];
          red += pixels[source] * weight;
          green += pixels[source + 1] * weight;
          blue += pixels[source + 2] * weight;
        }
        narrowed[target] = red >> shift;
        narrowed[target + 1] = green >> shift;
        narrowed[target + 2] = blue >> shift;
      }
    }
  }

  /** Return the rows of `narrowed`, resized vertically. */
  shorten() {
    const { starts, taps, weights, shift } = this.rows;
    const { narrowed, height, firstRow } = this;
    const length = this.width * 3;
    const output = new Uint8ClampedArray(height * length);
    const sums = new Int32Array(length);
    for (let row = 0; row < height; row++) {
      sums.fill(1 << (shift - 1));
      for (let j = 0; j < taps; j++) {
        const weight = weights[row * taps + j];
        if (weight === 0) continue;
        const source = (starts[row] + j - firstRow) * length;
        for (let i = 0; i < length; i++) sums[i] += narrowed[source + i] * weight;
      }
      for (let i = 0, target = row * length; i < length; i++) output[target + i] = sums[i] >> shift;
    }
    return output;
  }
}
