// Shows a photo upright, and on it where the model looked.

/** Load a photo for an <img>: the URL of an upright picture, and its width and height. */
export async function load(file) {
  const turn = await missingTurn(file).catch(() => 1);
  const url = URL.createObjectURL(turn === 1 ? file : await turned(file, turn));
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
  return { url, width: image.naturalWidth, height: image.naturalHeight };
}

// Browsers turn a JPEG as its EXIF orientation says; for PNG and WebP some do and some do not, but
// the server does. So what this browser leaves undone is found out with a two-pixel picture each.
const PROBES = {
  "image/png":
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAAAAADRSSBWAAAAGmVYSWZNTQAqAAAACAABARIAAwAAAAEABgAAAAAAANZn" +
    "S2kAAAALSURBVHicY2BgAAAAAwABuK06YwAAAABJRU5ErkJggg==",
  "image/webp":
    "UklGRk4AAABXRUJQVlA4WAoAAAAIAAAAAQAAAAAAVlA4TA4AAAAvAQAAAAcQEf0PRET/A0VYSUYaAAAATU0AKgAAAAgA" +
    "AQESAAMAAAABAAYAAAAAAAA=",
};
const turnsItself = {};

async function missingTurn(file) {
  const head = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...head);
  const isPng = text.startsWith("\x89PNG\r\n\x1a\n");
  if (!isPng && !(text.startsWith("RIFF") && text.endsWith("WEBP"))) return 1;
  const turn = isPng ? await orientationInPng(file) : await orientationInWebp(file);
  const kind = isPng ? "image/png" : "image/webp";
  return turn === 1 || (await (turnsItself[kind] ??= probe(kind))) ? 1 : turn;
}

async function probe(kind) {
  const bytes = Uint8Array.from(atob(PROBES[kind]), (letter) => letter.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], { type: kind }));
  return picture.height === 2;
}

async function orientationInPng(file) {
  for (let at = 8; at + 12 <= file.size; ) {
    const { view, name } = await chunk(file, at, 4);
    if (name === "eXIf") return orientationInTiff(file, at + 8);
    if (name === "IDAT") return 1;
    at += 12 + view.getUint32(0);
  }
  return 1;
}

async function orientationInWebp(file) {
  for (let at = 12; at + 8 <= file.size; ) {
    const { view, name } = await chunk(file, at, 0);
    if (name === "EXIF") {
      const isPrefixed = (await file.slice(at + 8, at + 14).text()) === "Exif\0\0";
      return orientationInTiff(file, at + (isPrefixed ? 14 : 8));
    }
    const length = view.getUint32(4, true);
    at += 8 + length + (length % 2);
  }
  return 1;
}

async function chunk(file, at, nameAt) {
  const bytes = await file.slice(at, at + 8).arrayBuffer();
  const name = String.fromCharCode(...new Uint8Array(bytes, nameAt, 4));
  return { view: new DataView(bytes), name };
}

async function orientationInTiff(file, start) {
  const view = new DataView(await file.slice(start, start + 65536).arrayBuffer());
  const isLittle = view.getUint16(0) === 0x4949;
  const directory = view.getUint32(4, isLittle);
  for (let k = 0; k < view.getUint16(directory, isLittle); k++) {
    const entry = directory + 2 + 12 * k;
    if (view.getUint16(entry, isLittle) !== 0x0112) continue;
    const value = view.getUint16(entry + 8, isLittle);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}

/** What each orientation does to a point (x, y) of a w x h picture: a, b, c, d, e, f of a matrix. */
const TURNS = {
  2: (w) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w) => [0, -1, 1, 0, 0, w],
};

async function turned(file, turn) {
  const picture = await createImageBitmap(file);
  const canvas = document.createElement("canvas");
  const { width, height } = picture;
  [canvas.width, canvas.height] = turn >= 5 ? [height, width] : [width, height];
  const context = canvas.getContext("2d");
  context.setTransform(...TURNS[turn](width, height));
  context.drawImage(picture, 0, 0);
  picture.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

const SMALL = 224; // px of the longer side, below which a picture is shown larger than it is

/** Show a picture of a few pixels in a size at which they, and the heat on them, can be seen. */
export function enlarge(image, { width, height }) {
  const longer = Math.max(width, height);
  if (longer >= SMALL) return;
  image.style.width = `${(SMALL * width) / longer}px`;
  image.style.imageRendering = "pixelated";
}

/** Lay the canvas over the centred square of the photo that the model looked at. */
export function place(canvas, { width, height }, cropPct) {
  const side = cropPct * Math.min(width, height);
  const percent = (part, whole) => `${(100 * part) / whole}%`;
  canvas.style.width = percent(side, width);
  canvas.style.height = percent(side, height);
  canvas.style.left = percent((width - side) / 2, width);
  canvas.style.top = percent((height - side) / 2, height);
}

// From cold to hot. Brightness grows all the way, so no colour vision is needed to read it.
const COLORS = [[40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21],
  [250, 193, 39], [252, 255, 164]];
const SIDE = 224;

const COLD = 0.35; // opacity where there is no heat: hot places stand out on photos of any colour

/** Paint a heatmap of rows of numbers in 0..1; one without any heat stays clear. */
export function paint(canvas, heat) {
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  if (Math.max(...heat.flat()) <= 0) return;
  const picture = context.createImageData(SIDE, SIDE);
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      const value = between(heat, (y + 0.5) / SIDE, (x + 0.5) / SIDE);
      const opacity = COLD + (1 - COLD) * Math.min(1, 1.4 * value);
      picture.data.set([...color(value), 255 * opacity], 4 * (y * SIDE + x));
    }
  }
  context.putImageData(picture, 0, 0);
}

/** The heat at y, x in 0..1, bilinear between the centres of its cells. */
function between(heat, y, x) {
  const [above, below, v] = neighbours(y, heat.length);
  const [left, right, u] = neighbours(x, heat[0].length);
  const top = (1 - u) * heat[above][left] + u * heat[above][right];
  const bottom = (1 - u) * heat[below][left] + u * heat[below][right];
  return (1 - v) * top + v * bottom;
}

function neighbours(position, count) {
  const at = Math.min(Math.max(position * count - 0.5, 0), count - 1);
  const first = Math.floor(at);
  return [first, Math.min(first + 1, count - 1), at - first];
}

function color(value) {
  const [low, high, share] = neighbours(value + 0.5 / COLORS.length, COLORS.length);
  return COLORS[low].map((part, k) => (1 - share) * part + share * COLORS[high][k]);
}

/** Where in the photo the heat is strongest, in words; null where there is none. */
export function whereabouts(heat, { width, height }, cropPct) {
  const best = { heat: 0, y: 0, x: 0 };
  heat.forEach((row, y) => row.forEach((value, x) => {
    if (value > best.heat) Object.assign(best, { heat: value, y, x });
  }));
  if (best.heat <= 0) return null;
  const side = cropPct * Math.min(width, height);
  const third = (cell, count, whole) =>
    Math.floor((3 * ((whole - side) / 2 + (side * (cell + 0.5)) / count)) / whole);
  const row = third(best.y, heat.length, height);
  const column = third(best.x, heat[0].length, width);
  return [
    ["in the upper left", "at the top", "in the upper right"],
    ["at the left", "in the middle", "at the right"],
    ["in the lower left", "at the bottom", "in the lower right"],
  ][row][column];
}
