// Talks to the studio's server. Strokes that could not be sent stay in the browser's storage and are sent later.

const PENDING = "studio-pending";

async function answer(response) {
  if (response.ok) return response;
  const error = await response.json().catch(() => ({ error: `the studio answered ${response.status}` }));
  throw Object.assign(new Error(error.error), { refused: true });
}

export const get = async (path) => (await answer(await fetch(`/api/${path}`))).json();

export const post = async (path, content) =>
  (await answer(await fetch(`/api/${path}`, { method: "POST", body: JSON.stringify(content) }))).json();

export async function upload(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  return (await answer(await fetch("/api/pictures", { method: "POST", body: form }))).json();
}

// The prediction of a picture: {width, height, classes, entropy}, a byte a pixel; null if there is none.
export async function prediction(id, source) {
  const response = await answer(await fetch(`/api/pictures/${id}/prediction?source=${source}`));
  if (response.status === 204) return null;
  const bytes = new Uint8Array(await response.arrayBuffer());
  const half = bytes.length / 2;
  return {
    width: Number(response.headers.get("X-Width")),
    height: Number(response.headers.get("X-Height")),
    classes: bytes.subarray(0, half),
    entropy: bytes.subarray(half),
  };
}

// Changes of strokes, sent one after the other. A change is {id, add, remove}; the server takes it any number of times.
export class Changes {
  constructor(onSaved, onProblem) {
    this.onSaved = onSaved;
    this.onProblem = onProblem;
    this.waiting = JSON.parse(localStorage.getItem(PENDING) || "[]");
    this.sending = null;
  }

  push(change) {
    this.waiting.push({ ...change, begun: performance.now() });
    this.keep();
    return this.send();
  }

  of(id) {
    return this.waiting.filter((change) => change.id === id);
  }

  send() {
    this.sending ??= this.sendAll().finally(() => { this.sending = null; });
    return this.sending;
  }

  async sendAll() {
    while (this.waiting.length) {
      const change = this.waiting[0];
      try {
        const saved = await post(`pictures/${change.id}/strokes`, { add: change.add, remove: change.remove });
        if (change.begun) performance.measure("stroke saved", { start: change.begun });
        this.done();
        this.onSaved(change.id, saved.version);
      } catch (error) {
        if (error.refused) this.done();
        this.onProblem(error.refused ? error.message : "The studio does not answer. Your strokes are kept here until it does.");
        if (error.refused) continue;
        await new Promise((resolve) => setTimeout(resolve, 1500));
      }
    }
  }

  done() {
    this.waiting.shift();
    this.keep();
  }

  keep() {
    localStorage.setItem(PENDING, JSON.stringify(this.waiting.map(({ begun, ...change }) => change)));
  }
}
