// Talks to the server, and turns what can go wrong into words.

const TOKEN = "kresnet-token";
const PATIENCE_MS = 120_000;
const MAX_RETRIES = 3;

/** A request that brought no answer. `status` is 0 when the server could not be reached. */
export class Failure extends Error {
  constructor(words, status = 0) {
    super(words);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** GET or, with a body, POST a path relative to the page; resolves to the parsed JSON. */
export async function request(path, { body, signal, onWait } = {}) {
  for (let attempt = 1; ; attempt++) {
    const response = await send(path, body, signal);
    const said = await response.json().catch(() => ({}));
    if (response.ok) return said;
    const seconds = Number(response.headers.get("Retry-After"));
    const isBusy = response.status === 429 || response.status === 503;
    if (!isBusy || !(seconds > 0 && seconds <= 10) || attempt > MAX_RETRIES) {
      throw new Failure(words(response.status, said.error), response.status);
    }
    onWait?.(seconds);
    await pause(1000 * seconds, signal);
  }
}

async function send(path, body, signal) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  const patience = AbortSignal.timeout(PATIENCE_MS);
  try {
    return await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body,
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure(
      patience.aborted
        ? "The server did not answer in two minutes."
        : "The server cannot be reached. It may have stopped, or the network is down.",
    );
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

function words(status, error) {
  const detail = typeof error === "string" ? error.slice(0, 300) : "";
  const texts = {
    401: "This server asks for a token.",
    403: "This server does not allow that.",
    404: "The server does not have this model any more. Reload the page.",
    408: "The image took too long to arrive.",
    413: "The image is larger than this server accepts.",
    429: "The server has more to do than it can. Try again in a moment.",
    503: "The server is stopping, or not ready yet. Try again in a moment.",
    504: "The model took too long to answer.",
  };
  if (status in texts) return texts[status];
  return `The server answered ${status}${detail ? `: ${detail}` : "."}`;
}

/** The request about one image: its parts before and after the base64 text of the file. */
export function predictBody(signature, classIndex) {
  const more = signature === "explain" ? `, "class_index": ${classIndex}` : "";
  return [
    `{"signature_name": "${signature}", "instances": [{"image_bytes": {"b64": "`,
    `"}${more}}]}`,
  ];
}

/** The content of a file as base64 text. */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Failure("The file cannot be read. Was it moved?"));
    reader.readAsDataURL(file);
  });
}
