// The page: images from a file, the clipboard or the camera → worker → labels with bars, boxes or classes on the image.

import { drawDetections } from "./boxes.js";
import { countPixels, paintLabels } from "./masks.js";

const TOP_LABELS = 5;
const MAX_VIEW = 1600; // pixels of the longer side of the image that is shown
const FRAMES = 10; // live frames over which the rate is averaged
const DECODING = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
// Resolution at which frames are resized in 3 ms; models take images of 128 to 320 pixels.
const CAMERA = { audio: false, video: { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 } } };
const CAMERA_ERRORS = {
  NotAllowedError: "The camera is blocked. Allow it in the browser's settings for this page, or choose a photo.",
  NotFoundError: "There is no camera. Choose a photo instead.",
  NotReadableError: "The camera can't be opened. Close other applications that use it, or choose a photo.",
};

const elements = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const model = await (await fetch("model.json")).json();
const isDetector = model.task === "object-detection";
const isSegmenter = model.task === "image-segmentation";
const hidden = new Set(model.background); // classes that are not drawn on the image

let threshold = model.threshold;
let shown = null; // image on the page, its size and the model's outputs
let stream = null; // of the camera
let latest = 0; // number of the last image that was chosen

// --- model -----------------------------------------------------------------------------------------------------------

const worker = new Worker("worker.js", { type: "module" });
const answers = new Map(); // promises' functions by request
let requests = 0;

const ready = new Promise((resolve, reject) => {
  worker.onmessage = ({ data }) => {
    if (data.progress) elements.progress.value = data.progress;
    else if (data.isReady) resolve();
    else if (data.id === undefined) reject(new Error(data.error));
    else {
      const answer = answers.get(data.id);
      answers.delete(data.id);
      if (data.error) answer.reject(new Error(data.error));
      else answer.resolve(data);
    }
  };
  worker.onerror = (event) => reject(new Error(event.message ?? "this browser is too old"));
});
worker.postMessage({ model });
elements.hint.hidden = true;
ready.then(
  () => {
    elements.progress.hidden = true;
    if (!shown && !stream) setStatus("Ready");
  },
  (error) => {
    elements.progress.hidden = true;
    setStatus("");
    showError(`The model can't be loaded: ${error.message}. Reload the page.`);
  },
);

/** Run the model on a bitmap, which is closed. */
async function predict(bitmap) {
  await ready;
  const id = ++requests;
  const answer = new Promise((resolve, reject) => answers.set(id, { resolve, reject }));
  worker.postMessage({ id, bitmap }, [bitmap]);
  return answer;
}

/**
 * Return the model's outputs as objects, by descending score: all classes, or the boxes of a detector. Those of a
 * segmentation model are one label map.
 */
function readOutputs({ scores, labels, boxes, width, height }) {
  if (isSegmenter) return [{ data: labels, width, height }];
  const predictions = scores.map((score, index) => ({
    score,
    label: labels ? Number(labels[index]) : index,
    box: boxes?.slice(4 * index, 4 * index + 4), // x1, y1, x2, y2 as fractions of the image
  }));
  return predictions.filter(({ score }) => score > 0).sort((a, b) => b.score - a.score);
}

// --- images ----------------------------------------------------------------------------------------------------------

async function openFile(file) {
  const number = ++latest;
  stopCamera();
  showError("");
  setStatus("Reading the photo…");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, DECODING);
  } catch {
    if (number === latest) showUnreadable(file);
    return;
  }
  await answerPhoto(bitmap, number);
}

function showUnreadable(file) {
  hideImage();
  setStatus("");
  const name = file.name || "The image";
  const isHeic = /\.(heic|heif)$/i.test(file.name) || /hei[cf]/.test(file.type);
  const reason = isHeic ? "This browser does not read HEIC photos" : "It is damaged, or not an image that this browser reads";
  showError(`${name} can't be opened. ${reason}. Choose a JPEG, PNG or WebP file.`);
}

/** Show a photo and the answer to it, unless another image was chosen meanwhile. */
async function answerPhoto(bitmap, number) {
  const image = copyForView(bitmap);
  const { width, height } = bitmap;
  show({ image, width, height, predictions: [] });
  setStatus(elements.progress.hidden ? "Analyzing…" : "Loading the model…");
  try {
    const { outputs, milliseconds } = await predict(bitmap);
    if (number !== latest) return;
    show({ image, width, height, predictions: readOutputs(outputs) });
    elements.time.textContent = `${formatTime(milliseconds)} per image`;
  } catch (error) {
    if (number === latest) showFailure(error);
  }
}

/** Return a copy of a bitmap on a canvas, reduced: a photo of 12 megapixels would take 48 MB. */
function copyForView(bitmap) {
  const scale = Math.min(1, MAX_VIEW / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// --- camera ----------------------------------------------------------------------------------------------------------

async function startCamera() {
  const number = ++latest;
  showError("");
  if (!navigator.mediaDevices?.getUserMedia) {
    showError("The camera needs a secure connection (https), or a page on localhost.");
    return;
  }
  setStatus("Starting the camera…");
  try {
    const opened = await navigator.mediaDevices.getUserMedia(CAMERA);
    if (number !== latest) {
      opened.getTracks().forEach((track) => track.stop());
      return;
    }
    stream = opened;
    elements.video.srcObject = stream;
    await elements.video.play();
  } catch (error) {
    if (number !== latest) return;
    stopCamera();
    setStatus(shown ? elements.status.textContent : "");
    showError(CAMERA_ERRORS[error.name] ?? `The camera can't be opened: ${error.message}`);
    return;
  }
  setLive(true);
  runLive(stream);
}

/** Answer frame after frame while the camera runs. */
async function runLive(current) {
  const ends = [];
  setStatus(elements.progress.hidden ? "" : "Loading the model…");
  try {
    await ready;
    while (stream === current) {
      const painted = new Promise(requestAnimationFrame); // no more frames than the screen shows
      const bitmap = await createImageBitmap(elements.video);
      const { width, height } = bitmap;
      const image = copyForView(bitmap);
      const { outputs, milliseconds } = await predict(bitmap);
      if (stream !== current) return;
      show({ image, width, height, predictions: readOutputs(outputs) });
      ends.push(performance.now());
      if (ends.length > FRAMES) ends.shift();
      const rate = (1000 * (ends.length - 1)) / (ends.at(-1) - ends[0]);
      elements.time.textContent = `${formatTime(milliseconds)} per image` + (rate ? `, ${rate.toFixed(0)} frames/s` : "");
      await painted;
    }
  } catch (error) {
    if (stream === current) {
      stopCamera();
      showFailure(error);
    }
  }
}

async function takePhoto() {
  const number = ++latest;
  const bitmap = await createImageBitmap(elements.video);
  stopCamera();
  await answerPhoto(bitmap, number);
  elements.camera.focus();
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  elements.video.srcObject = null;
  setLive(false);
}

function setLive(isLive) {
  for (const name of ["choose", "file", "camera"]) elements[name].hidden = isLive;
  elements.snapshot.hidden = !isLive;
  elements.stop.hidden = !isLive;
  // A screen reader could not keep up with the answers to a video.
  elements.status.setAttribute("aria-live", isLive ? "off" : "polite");
}

// --- answer ----------------------------------------------------------------------------------------------------------

function show(image) {
  shown = image;
  elements.empty.hidden = true;
  elements.canvas.hidden = false;
  render();
}

function hideImage() {
  shown = null;
  elements.empty.hidden = false;
  elements.canvas.hidden = true;
  elements.time.textContent = "";
  elements.labels.replaceChildren();
  if (isDetector) elements.details.hidden = true;
}

function render() {
  if (isSegmenter) {
    drawImage([]);
    showSegments(shown.predictions[0]);
    return;
  }
  const predictions = isDetector ? shown.predictions.filter(({ score }) => score > threshold) : shown.predictions;
  drawImage(isDetector ? predictions : []);
  if (shown.predictions.length > 0 || stream) {
    if (isDetector) showObjects(predictions);
    else showLabels(predictions);
  } else {
    elements.labels.replaceChildren();
    elements.time.textContent = "";
    if (isDetector) setStatus("No objects");
  }
}

/** Draw the image and boxes at the resolution of the screen. */
function drawImage(predictions) {
  const { canvas, stage } = elements;
  const maxHeight = window.innerHeight * (window.innerWidth < 832 ? 0.42 : 0.7);
  const scale = Math.min(stage.clientWidth / shown.width, maxHeight / shown.height);
  const [width, height] = [shown.width, shown.height].map((pixels) => Math.max(1, Math.round(pixels * scale)));
  const ratio = window.devicePixelRatio;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(shown.image, 0, 0, canvas.width, canvas.height);
  if (isSegmenter && shown.predictions.length > 0) {
    context.drawImage(paintLabels(shown.predictions[0], model.classes, hidden), 0, 0, canvas.width, canvas.height);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawDetections(context, width, height, predictions, model.classes);
}

function showLabels(predictions) {
  const best = predictions.slice(0, TOP_LABELS);
  const [first] = best;
  if (!first) return;
  setStatus(model.classes[first.label].name);
  elements.canvas.setAttribute("aria-label", `Image of class ${model.classes[first.label].name}`);
  const rows = elements.labels.children;
  while (rows.length < best.length) elements.labels.append(makeRow());
  best.forEach(({ label, score }, index) => {
    const [bar, name, value] = rows[index].children;
    bar.style.width = `${100 * score}%`;
    name.textContent = model.classes[label].name;
    value.textContent = formatPercent(score);
  });
}

function makeRow() {
  const row = document.createElement("li");
  row.append(...["bar", "name", "score"].map((style) => Object.assign(document.createElement("span"), { className: style })));
  return row;
}

function showObjects(predictions) {
  const counts = new Map();
  for (const { label } of predictions) counts.set(label, (counts.get(label) ?? 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  setStatus(predictions.length === 1 ? "1 object" : `${predictions.length || "No"} objects`);
  const texts = sorted.map(([label, count]) => `${count} ${model.classes[label].name}`);
  elements.canvas.setAttribute("aria-label", `Image with boxes: ${texts.join(", ") || "no objects"}`);
  elements.labels.replaceChildren(
    ...sorted.map(([label], index) => {
      const item = Object.assign(document.createElement("li"), { textContent: texts[index] });
      item.style.background = model.classes[label].color;
      item.style.color = model.classes[label].text_color;
      return item;
    }),
  );
  elements.details.hidden = stream !== null || predictions.length === 0;
  if (!stream) elements.objects.replaceChildren(...predictions.map(makeObjectRow));
}

function makeObjectRow({ label, score, box }) {
  const row = document.createElement("tr");
  const sides = [shown.width, shown.height, shown.width, shown.height];
  const corners = box.map((fraction, index) => (fraction * sides[index]).toFixed(1));
  for (const text of [model.classes[label].name, score.toFixed(3), ...corners]) row.insertCell().textContent = text;
  return row;
}

/** Show the classes of a label map with their fractions; none while there is no answer yet. */
function showSegments(labelMap) {
  const fractions = labelMap ? countPixels(labelMap, model.classes.length) : [];
  if (labelMap) setStatus(`${fractions.length} ${fractions.length === 1 ? "class" : "classes"}`);
  else elements.time.textContent = "";
  const texts = fractions.map(([label, fraction]) => `${model.classes[label].name} ${formatPercent(fraction)}`);
  elements.canvas.setAttribute("aria-label", labelMap ? `Image with classes: ${texts.join(", ")}` : "Image");
  // Rows stay in place, so that a switch keeps the focus while the camera runs.
  if (elements.labels.children.length === 0) elements.labels.append(...model.classes.map(makeSwitch));
  const rows = [...elements.labels.children];
  for (const row of rows) row.hidden = true;
  fractions.forEach(([label, fraction], rank) => {
    rows[label].hidden = false;
    rows[label].style.order = rank;
    rows[label].querySelector(".score").textContent = formatPercent(fraction);
  });
}

/** Return a row with a class and a switch that draws it on the image. */
function makeSwitch({ name, color }, label) {
  const row = document.createElement("li");
  const field = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "checkbox", checked: !hidden.has(label) });
  input.addEventListener("change", () => {
    if (input.checked) hidden.delete(label);
    else hidden.add(label);
    if (shown) render();
  });
  const parts = ["dot", "name", "score"].map((style) => Object.assign(document.createElement("span"), { className: style }));
  parts[0].style.background = color;
  parts[1].textContent = name;
  field.append(input, ...parts);
  row.append(field);
  return row;
}

function setStatus(text) {
  if (elements.status.textContent !== text) elements.status.textContent = text;
}

function showError(text) {
  elements.error.textContent = text;
  elements.error.hidden = !text;
}

function showFailure(error) {
  setStatus("");
  showError(`The model can't be run on this image: ${error.message}`);
}

function formatTime(milliseconds) {
  return `${milliseconds < 10 ? milliseconds.toFixed(1) : milliseconds.toFixed(0)} ms`;
}

function formatPercent(score) {
  return `${(100 * score).toFixed(1)}%`;
}

function setThreshold(value) {
  threshold = value;
  elements["threshold-value"].textContent = value.toFixed(2);
}

// --- events ----------------------------------------------------------------------------------------------------------

elements.file.addEventListener("change", () => {
  const [file] = elements.file.files;
  elements.file.value = ""; // the same file again is a change
  if (file) openFile(file);
});
elements.camera.addEventListener("click", startCamera);
elements.snapshot.addEventListener("click", takePhoto);
elements.stop.addEventListener("click", () => {
  latest++;
  stopCamera();
  elements.camera.focus();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden && stream) stopCamera();
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) openFile(file);
});
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    elements.stage.classList.toggle("over", type === "dragover");
    const file = type === "drop" && event.dataTransfer.files[0];
    if (file) openFile(file);
  });
}
window.addEventListener("resize", () => shown && render());
if (isDetector) {
  elements.threshold.value = threshold;
  setThreshold(threshold);
  elements.threshold.addEventListener("input", () => {
    setThreshold(elements.threshold.valueAsNumber);
    if (shown) render();
  });
}
// Not available without https, and blocked in some private windows: then the page needs a connection.
const { serviceWorker } = navigator;
const isUpdate = Boolean(serviceWorker?.controller);
// Not before the downloads are complete: it takes them from the browser's cache.
ready.finally(() => serviceWorker?.register("service-worker.js")).catch(() => {});
serviceWorker?.addEventListener("controllerchange", () => {
  if (isUpdate && !shown && !stream) location.reload(); // a new version of the page
});
