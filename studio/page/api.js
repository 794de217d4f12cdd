// Talks to the studio's server. A stroke stays in the browser's storage until the server has it.

async function answer(response) {
  if (response.ok) return response;
  const { status } = response;
  const { error } = await response.json().catch(() => ({}));
  const usual = status === 401 ? "Open the address again that the studio printed." : `The studio answered ${status}.`;
  throw Object.assign(new Error(error || usual), { status, refused: [400, 404].includes(status) }); // refused: for good
}

export const get = async (path) => (await answer(await fetch(`/api/${path}`))).json();

export const getBlob = async (path) => (await answer(await fetch(`/api/${path}`))).blob();

export const post = async (path, content) =>
  (await answer(await fetch(`/api/${path}`, { method: "POST", body: JSON.stringify(content) }))).json();

export const ofPicture = (id, what) => `pictures/${encodeURIComponent(id)}/${what}`;

export async function upload(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  return (await answer(await fetch("/api/pictures", { method: "POST", body: form }))).json();
}

// The prediction of a picture: {width, height, classes, entropy}, a byte a pixel; null if there is none.
export async function prediction(id, source) {
  const response = await answer(await fetch(`/api/${ofPicture(id, "prediction")}?source=${source}`));
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

// Changes of strokes, sent one after the other. A change is {id, add, remove}; the server takes it any number of times, so
// several tabs may send the same one. Each waits in the storage under a key of its own.
export class Changes {
  constructor(onSaved, onRefused, onProblem) {
    Object.assign(this, { onSaved, onRefused, onProblem, waiting: [], sending: null, prefix: null });
  }

  // Takes up the changes that an earlier page of this folder could not send.
  open(folder) {
    this.folder = folder;
    this.prefix = `studio:${folder}:`;
    for (const key of Object.keys(localStorage).filter((one) => one.startsWith(this.prefix)).sort()) {
      if (!this.waiting.some((change) => change.key === key)) this.waiting.push({ key, ...JSON.parse(localStorage.getItem(key)) });
    }
    return this.send();
  }

  push(change) {
    const key = `${this.prefix}${Date.now()}:${Math.random()}`;
    this.waiting.push({ key, begun: performance.now(), ...change });
    try {
      localStorage.setItem(key, JSON.stringify(change));
    } catch {
      this.onProblem("The browser's storage is full: keep this page open until the strokes are saved.");
    }
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
        const saved = await post(ofPicture(change.id, "strokes"), { key: this.folder, add: change.add, remove: change.remove });
        if (change.begun) performance.measure("stroke saved", { start: change.begun });
        this.done(change);
        this.onSaved(change.id, saved.version);
      } catch (error) {
        if (error.status === 409) return location.reload(); // the strokes stay in the storage for their own folder
        if (error.refused) {
          this.done(change);
          this.onRefused(change.id, error.message);
        } else {
          const reason = error.status ? error.message : "The studio does not answer.";
          this.onProblem(`${reason} Your strokes are kept here.`);
          await new Promise((resolve) => setTimeout(resolve, 1500));
        }
      }
    }
  }

  done(change) {
    this.waiting.shift();
    localStorage.removeItem(change.key);
  }
}
