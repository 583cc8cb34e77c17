// The page: takes images in, asks the server about each, shows the answers.

import { Failure, base64, predictBody, request, token } from "./client.js";
import { enlarge, load, paint, place, whereabouts } from "./photo.js";
import * as snippets from "./snippets.js";

const FIRST_CLASSES = 5;
const MAX_CARDS = 200;
const REQUESTS_AT_ONCE = 2;

const find = (selector, root = document) => root.querySelector(selector);
const cards = new Map(); // by their <article>
let facts; // what the server said at v1/page.json

// ---------------------------------------------------------------- the server and its token

async function askForFacts() {
  facts = await withToken(() => request("v1/page.json"));
  document.title = `${facts.name} - kresnet`;
  find("#name").textContent = facts.name;
  const classes = `${facts.num_classes} classes`;
  const threshold = facts.threshold == null ? "" : `, answers from ${percent(facts.threshold)} on`;
  find("#facts").textContent =
    `version ${facts.version}, ${facts.variant}, ${classes}${threshold}, on ${facts.runtime}`;
  return facts;
}

async function withToken(ask) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 401 || !(await askForToken())) throw error;
    }
  }
}

let asking; // one dialog, however many requests wait for it
function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = find("#token");
    const field = find("#token-field");
    if (token.get()) find("#token-title").textContent = "The server did not accept the token";
    field.value = "";
    dialog.returnValue = "";
    dialog.onclose = () => {
      const isGiven = dialog.returnValue === "use" && field.value.trim() !== "";
      if (isGiven) token.set(field.value.trim());
      field.value = "";
      find("#forget").hidden = !token.get();
      asking = undefined;
      resolve(isGiven);
    };
    dialog.showModal();
  });
  return asking;
}

let running = 0;
const waiting = [];
async function inTurn(ask) {
  if (running >= REQUESTS_AT_ONCE) await new Promise((resolve) => waiting.push(resolve));
  else running++;
  try {
    return await ask();
  } finally {
    if (waiting.length) waiting.shift()();
    else running--;
  }
}

// ---------------------------------------------------------------- a card for each image

class Card {
  constructor(file) {
    this.file = file;
    this.name = file.name || "image.jpg";
    this.element = find("#card").content.firstElementChild.cloneNode(true);
    this.aborter = new AbortController();
    const title = this.find("h3");
    title.textContent = this.name;
    title.id = `title-${crypto.getRandomValues(new Uint32Array(2)).join("")}`;
    this.element.setAttribute("aria-labelledby", title.id);
    this.find("img").alt = `Photo ${this.name}`;
    this.find(".remove").setAttribute("aria-label", `Remove ${this.name}`);
    this.find(".remove").onclick = () => remove(this);
    this.find(".again").onclick = () => this.ask(this.wanted);
    this.find(".toggle").onchange = (event) => {
      this.find("canvas").hidden = !event.target.checked;
      this.find(".opacity").disabled = !event.target.checked;
    };
    this.find(".opacity").oninput = (event) => {
      this.find("canvas").style.opacity = event.target.value / 100;
    };
    this.find(".more").onclick = () => this.expand(!this.isExpanded);
    this.find(".find").oninput = (event) => this.filter(event.target.value);
    for (const button of this.element.querySelectorAll(".copy")) button.onclick = copy;
    this.photo = load(file).then(
      (photo) => this.showPhoto(photo),
      () => this.showNoPhoto(),
    );
  }

  find(selector) {
    return find(selector, this.element);
  }

  showPhoto(photo) {
    if (this.aborter.signal.aborted) URL.revokeObjectURL(photo.url);
    else enlarge(Object.assign(this.find("img"), { src: photo.url }), photo);
    return photo;
  }

  showNoPhoto() {
    this.find("figure").hidden = true;
    return null;
  }

  /** Ask the server about the image, and about class `wanted`: -1 is the likeliest. */
  async ask(wanted = -1) {
    this.wanted = wanted;
    this.element.setAttribute("aria-busy", "true");
    this.find(".failure").hidden = true;
    const note = this.find(".waiting");
    note.textContent = "Asking the model …";
    note.hidden = false;
    try {
      const said = await inTurn(() => withToken(() => this.send(wanted, note)));
      const photo = await this.photo;
      if (wanted !== this.wanted || this.aborter.signal.aborted) return;
      this.show(said.predictions[0], photo);
    } catch (error) {
      if (!this.aborter.signal.aborted && wanted === this.wanted) this.fail(error);
    } finally {
      if (wanted === this.wanted) {
        note.hidden = true;
        this.element.removeAttribute("aria-busy");
      }
    }
  }

  async send(wanted, note) {
    this.aborter.signal.throwIfAborted();
    facts ??= await askForFacts();
    const [before, after] = predictBody(facts.signature, wanted);
    const size = before.length + 4 * Math.ceil(this.file.size / 3) + after.length;
    if (size > facts.max_body_bytes) {
      const largest = (3 * facts.max_body_bytes) / 4;
      throw new Failure(
        `The image is too big: ${megabytes(this.file.size)}, and this server accepts up to ` +
          `${megabytes(largest)}. Make a smaller copy and try that.`,
        413,
      );
    }
    if (this.file.size === 0) throw new Failure("The file is empty.");
    return request(path(), {
      body: before + (await base64(this.file)) + after,
      signal: this.aborter.signal,
      onWait: (seconds) => {
        note.textContent = `The server is busy. Trying again in ${seconds} s …`;
      },
    });
  }

  fail(error) {
    const box = this.find(".failure");
    find("p", box).textContent =
      error instanceof Failure ? error.message : `Something went wrong in this page: ${error}`;
    box.hidden = false;
  }

  show(answer, photo) {
    const isReadable = answer.ok !== false;
    const order = answer.scores.map((_, k) => k).sort((a, b) => answer.scores[b] - answer.scores[a]);
    this.answer = answer;
    this.order = isReadable ? order : [];
    this.explained = this.wanted === -1 ? order[0] : this.wanted;
    this.showVerdict();
    this.showHeat(photo);
    this.expand(this.isExpanded ?? false);
    this.showCode();
    const { label, score } = answer;
    say(
      isReadable
        ? `${this.name}: ${answer.abstain ? "not sure, likeliest " : ""}${label}, ${percent(score)}`
        : `${this.name} cannot be read`,
    );
  }

  showVerdict() {
    const { label, score, abstain, ok } = this.answer;
    const [name, value] = this.find(".label").children;
    const { threshold } = facts;
    const verdict = this.find(".verdict");
    verdict.className = `verdict ${abstain || ok === false ? "unsure" : "sure"}`;
    verdict.hidden = false;
    const words = this.find(".words");
    this.find(".label").hidden = ok === false;
    if (ok === false) {
      words.textContent =
        "The model cannot read this file. It reads JPEG, PNG, BMP, GIF and WebP of up to " +
        `${Math.round(facts.max_pixels / 1e6)} megapixels; the file may be of another kind, or ` +
        "damaged.";
      return;
    }
    name.textContent = abstain ? "Not sure" : label;
    value.hidden = abstain;
    value.value = score;
    value.textContent = percent(score);
    const floor = threshold == null ? "" : percent(threshold);
    words.replaceChildren();
    if (abstain) {
      const likeliest = document.createElement("bdi");
      likeliest.textContent = label;
      words.append("The likeliest class, ", likeliest, `, has ${percent(score)}.`);
      if (floor) words.append(` This model answers from ${floor} on.`);
    } else if (floor) {
      words.append(`This model answers from ${floor} on.`);
    }
  }

  showHeat(photo) {
    const { heatmap, labels, ok } = this.answer;
    const canvas = this.find("canvas");
    const isShown = Boolean(photo && heatmap?.length && ok !== false);
    this.find(".overlay").hidden = !isShown;
    canvas.hidden = !isShown || !this.find(".toggle").checked;
    const caption = this.find("figcaption");
    caption.textContent = "";
    if (!isShown) return;
    place(canvas, photo, facts.crop_pct);
    paint(canvas, heatmap);
    canvas.style.opacity = this.find(".opacity").value / 100;
    const where = whereabouts(heatmap, photo, facts.crop_pct);
    const name = document.createElement("bdi");
    name.textContent = labels[this.explained];
    if (where) caption.append("Evidence for ", name, ` is strongest ${where} of the photo.`);
    else caption.append("Nothing here is evidence for ", name, ".");
    if (facts.crop_pct < 1 || photo.width !== photo.height) {
      caption.append(" The model sees what is in the dashed square.");
    }
  }

  expand(isExpanded) {
    const { order } = this;
    const hasMore = order.length > FIRST_CLASSES;
    this.isExpanded = isExpanded;
    const more = this.find(".more");
    more.hidden = !hasMore;
    more.textContent = isExpanded
      ? `Show the likeliest ${FIRST_CLASSES}`
      : `Show all ${order.length} classes`;
    more.setAttribute("aria-expanded", String(isExpanded));
    const field = this.find(".find");
    field.hidden = !(isExpanded && order.length > 3 * FIRST_CLASSES);
    if (field.hidden) field.value = "";
    const list = this.find(".classes");
    const focused = list.contains(document.activeElement) && document.activeElement.dataset.index;
    list.replaceChildren(
      ...order.slice(0, isExpanded ? undefined : FIRST_CLASSES).map((k) => this.row(k)),
    );
    list.hidden = !order.length;
    if (focused) find(`[data-index="${focused}"]`, list)?.focus();
    this.filter(field.value);
  }

  row(k) {
    const { labels, scores, heatmap } = this.answer;
    const item = find("#class").content.firstElementChild.cloneNode(true);
    const button = find("button", item);
    const [name, value, bar] = button.children;
    name.textContent = labels[k];
    value.value = scores[k];
    value.textContent = percent(scores[k]);
    bar.firstElementChild.style.width = `${100 * scores[k]}%`;
    button.dataset.index = k;
    if (heatmap) {
      button.setAttribute("aria-pressed", String(k === this.explained));
      button.title = "Show where the model sees this class";
      button.onclick = () => this.ask(k);
    } else {
      button.disabled = true;
    }
    return item;
  }

  filter(text) {
    const wanted = text.trim().toLocaleLowerCase();
    for (const item of this.find(".classes").children) {
      item.hidden = !find("bdi", item).textContent.toLocaleLowerCase().includes(wanted);
    }
  }

  showCode() {
    const request = {
      url: new URL(path(), document.baseURI).href,
      fileName: this.name,
      signature: facts.signature,
      classIndex: this.wanted,
      hasToken: Boolean(token.get()),
    };
    this.find(".curl").textContent = snippets.curl(request);
    this.find(".python").textContent = snippets.python(request);
    this.find(".note").hidden = !request.hasToken;
    this.find(".code").hidden = false;
  }
}

const path = () => `v1/models/${encodeURIComponent(facts.name)}:predict`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** A probability as people read it; what is not certain never reads as 100 %. */
function percent(score) {
  const value = 100 * score;
  if (value > 0 && value < 0.05) return "< 0.1\u00a0%";
  if (value < 100 && value >= 99.95) return "> 99.9\u00a0%";
  return `${Number(value.toFixed(1))}\u00a0%`;
}

function say(text) {
  find("#live").textContent = text;
}

async function copy(event) {
  const button = event.target;
  const code = find("code", button.parentElement);
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // Only pages from https or this machine have a clipboard of their own.
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  say("Copied");
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

function remove(card) {
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  discard(card);
  (next ? find(".remove", next) : find("#choose")).focus();
}

function discard(card) {
  card.aborter.abort();
  URL.revokeObjectURL(card.find("img").src);
  card.element.remove();
  cards.delete(card.element);
  find("#tools").hidden = cards.size < 2;
}

// ---------------------------------------------------------------- the ways in

function take(files) {
  const room = MAX_CARDS - cards.size;
  const left = Math.max(files.length - room, 0);
  notice(
    left
      ? `The page shows ${MAX_CARDS} images at a time, so ${left} were left out. For a whole ` +
          "folder, use: kresnet predict"
      : "",
  );
  for (const file of [...files].slice(0, room).reverse()) {
    const card = new Card(file);
    cards.set(card.element, card);
    find("#cards").prepend(card.element);
  }
  find("#tools").hidden = cards.size < 2;
  for (const element of find("#cards").children) {
    const card = cards.get(element);
    if (card.wanted === undefined) card.ask();
  }
}

function notice(text) {
  find("#notice").textContent = text;
  find("#notice").hidden = !text;
}

for (const id of ["#files", "#capture"]) {
  const input = find(id);
  input.onchange = () => {
    take(input.files);
    input.value = ""; // so that the same file can be chosen again
  };
}
// Opened while Enter is still being handled, Chromium loses the dialog now and then.
const open = (input) => setTimeout(() => find(input).click());
find("#choose").onclick = () => open("#files");
find("#clear").onclick = () => {
  for (const card of [...cards.values()]) discard(card);
  find("#choose").focus();
};
find("#forget").onclick = () => {
  token.forget();
  find("#forget").hidden = true;
  find("#choose").focus();
  say("The token is forgotten");
};
find("#forget").hidden = !token.get();

let depth = 0; // dragenter and dragleave come for every element on the way
const isFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => {
  if (isFiles(event)) document.body.classList.toggle("over", ++depth > 0);
});
document.addEventListener("dragleave", (event) => {
  if (isFiles(event)) document.body.classList.toggle("over", --depth > 0);
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault(); // else the browser would leave the page for the file
  depth = 0;
  document.body.classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else notice("That was no file. Save the image first, then drop its file.");
});

document.addEventListener("paste", (event) => {
  if (event.target.closest?.("input")) return;
  const { files } = event.clipboardData;
  if (files.length) take(files);
  else notice("There is no image to paste.");
});
find("#paste").hidden = !navigator.clipboard?.read;
find("#paste").onclick = async () => {
  try {
    const files = [];
    for (const item of await navigator.clipboard.read()) {
      const kind = item.types.find((type) => type.startsWith("image/"));
      if (kind) files.push(new File([await item.getType(kind)], "pasted.png", { type: kind }));
    }
    if (files.length) take(files);
    else notice("There is no image to paste.");
  } catch {
    notice("The browser does not let this page read the clipboard. Press Ctrl+V instead.");
  }
};

// ---------------------------------------------------------------- the camera

const hasOwnCamera = matchMedia("(pointer: coarse)").matches; // a phone's own is the better one
const canWatch = isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);
find("#photograph").hidden = !(hasOwnCamera || canWatch);
find("#photograph").onclick = () => (hasOwnCamera ? open("#capture") : watch());

async function watch() {
  const dialog = find("#camera");
  const video = find("video", dialog);
  const failure = find(".failure", dialog);
  failure.hidden = true;
  find("#shoot").disabled = true;
  dialog.showModal();
  try {
    const wanted = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } };
    const stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
    if (!dialog.open) return stop(stream); // closed while the browser asked for permission
    dialog.onclose = () => stop(stream);
    video.srcObject = stream;
    await video.play();
    find("#shoot").disabled = false;
  } catch (error) {
    failure.textContent =
      { NotAllowedError: "The browser does not let this page use the camera.",
        NotFoundError: "No camera was found." }[error.name] ?? "The camera cannot be used now.";
    failure.hidden = false;
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
  find("#camera video").srcObject = null;
}

find("#close-camera").onclick = () => find("#camera").close();
let shots = 0;
find("#shoot").onclick = async () => {
  const video = find("#camera video");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  find("#camera").close();
  const content = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  take([new File([content], `photo-${++shots}.jpg`, { type: "image/jpeg" })]);
};

askForFacts().catch((error) => {
  find("#facts").textContent = error instanceof Failure ? error.message : String(error);
});
