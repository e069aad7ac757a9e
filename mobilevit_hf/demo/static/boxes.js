// Boxes and labels of detections on a canvas.

const FONT_SIZE = 13; // CSS pixels
const FONT = `600 ${FONT_SIZE}px system-ui, sans-serif`;
const [PADDING, LABEL_HEIGHT] = [4, FONT_SIZE + 6];

/**
 * Draw detections on a canvas whose unit is the CSS pixel.
 *
 * A label that would cover another one or does not fit into the image is left out: the color tells the class.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {number} width - Of the image on the canvas.
 * @param {number} height - Of the image on the canvas.
 * @param {{label: number, score: number, box: number[]}[]} detections - By descending score; boxes are x1, y1, x2, y2
 *   as fractions of the image.
 * @param {{name: string, color: string, text_color: string}[]} classes
 */
export function drawDetections(context, width, height, detections, classes) {
  const boxes = detections.map(({ box: [x1, y1, x2, y2], label, score }) => ({
    x: x1 * width,
    y: y1 * height,
    width: (x2 - x1) * width,
    height: (y2 - y1) * height,
    text: `${classes[label].name} ${Math.round(100 * score)}%`,
    ...classes[label],
  }));
  context.lineWidth = 2.5;
  for (const box of boxes.toReversed()) {
    context.strokeStyle = box.color;
    context.strokeRect(box.x, box.y, box.width, box.height);
  }
  context.font = FONT;
  context.textBaseline = "middle";
  const placed = [];
  for (const box of boxes) {
    const label = placeLabel(context, box, width, height, placed);
    if (!label) continue;
    placed.push(label);
    context.fillStyle = box.color;
    context.fillRect(label.x, label.y, label.width, LABEL_HEIGHT);
    context.fillStyle = box.text_color;
    context.fillText(label.text, label.x + PADDING, label.y + LABEL_HEIGHT / 2 + 1);
  }
}

/** Return the place of a box's label and its text, with the score if the box is wide enough, else only the name; null if neither fits. */
function placeLabel(context, box, width, height, placed) {
  for (const text of [box.text, box.name]) {
    const label = { text, width: context.measureText(text).width + 2 * PADDING };
    if (text === box.text && label.width > box.width) continue;
    label.x = Math.max(0, Math.min(box.x - 1, width - label.width));
    for (const y of [box.y - LABEL_HEIGHT, box.y, box.y + box.height]) {
      label.y = y;
      const fits = y >= 0 && y + LABEL_HEIGHT <= height && label.width <= width;
      if (fits && !placed.some((other) => overlaps(label, other))) return label;
    }
  }
  return null;
}

function overlaps(a, b) {
  return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + LABEL_HEIGHT && b.y < a.y + LABEL_HEIGHT;
}
