// The request of a card, as lines for a terminal.

import { predictBody } from "./client.js";

/** Quote for sh: nothing is special between single quotes but the single quote. */
const sh = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

// A file called -x or =x must stay a file.
const asPath = (name) => (/^[-=]/.test(name) ? `./${name}` : name);

// What JSON escapes, Python reads the same way.
const py = (text) => JSON.stringify(text);

export function curl({ url, fileName, signature, classIndex, hasToken }) {
  const [before, after] = predictBody(signature, classIndex);
  const lines = [
    `printf '${before}%s${after}' "$(base64 < ${sh(asPath(fileName))} | tr -d '\\n')" |`,
    "  curl --fail-with-body --data-binary @- -H 'Content-Type: application/json'",
    `  ${sh(url)}`,
  ];
  // A token on the command line would be seen by every user of the machine, and kept by the shell.
  if (hasToken) lines[1] += ` -H "Authorization: Bearer $KRESNET_TOKEN"`;
  return `${lines[0]}\n${lines[1]} \\\n${lines[2]}`;
}

export function python({ url, fileName, signature, classIndex, hasToken }) {
  const more = signature === "explain" ? `, "class_index": ${classIndex}` : "";
  const token = hasToken ? `, "Authorization": "Bearer " + os.environ["KRESNET_TOKEN"]` : "";
  return `import base64
import json
${hasToken ? "import os\n" : ""}import urllib.request

with open(${py(asPath(fileName))}, "rb") as file:
    image = base64.b64encode(file.read()).decode()
body = {
    "signature_name": "${signature}",
    "instances": [{"image_bytes": {"b64": image}${more}}],
}
request = urllib.request.Request(
    ${py(url)},
    json.dumps(body).encode(),
    {"Content-Type": "application/json"${token}},
)
with urllib.request.urlopen(request) as response:
    answer = json.load(response)["predictions"][0]
print(answer["label"], answer["score"])`;
}
