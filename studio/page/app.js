// The page of the studio: its state, its buttons and its keys.

import { Changes, get, getBlob, ofPicture, post, prediction, upload } from "./api.js";
import { plot } from "./curves.js";
import { View } from "./view.js";

const UNLABELLED = 255;
const $ = (id) => document.getElementById(id);
const view = new View($("canvas"));
const changes = new Changes(saved, refused, say);
const APART = 0.5; // least distance of a stroke's points, in pixels of the picture
const MOST_POINTS = 5000; // of a stroke; a longer line becomes several

let state = { pictures: [], classes: [], training: {} };
let current = null; // the open picture: {id, version, strokes, undo, redo}; undo and redo are lists of lists of strokes
let chosen = { class: 0, tool: "brush", width: 6, source: "instant" };
let predicted = 0; // the round of the network whose predictions are shown
const passed = new Set(); // pictures that the person skipped with N
const opened = new Map(); // id -> picture that was open before, with its undo and redo

// State

async function refresh() {
  const key = state.key;
  state = await get("state");
  if (key && key !== state.key) {
    location.reload();
    throw new Error("Another folder is open at this address.");
  }
  if (!key) {
    changes.open(state.key);
    predicted = state.training.predicted;
    say(state.notes.join("; "));
  }
  view.colours = state.classes.map((entry) => entry.colour);
  document.title = `${state.folder} - Scribble studio`;
  $("folder").textContent = state.folder;
  $("command").textContent = state.command;
  $("welcome").hidden = state.pictures.length > 0;
  chosen.class = Math.min(chosen.class, state.classes.length - 1);
  showPictures();
  showClasses();
  showTraining();
  view.colourPrediction();
  showStrokes();
  if (!current && state.pictures.length) await open(state.pictures[0].id);
}

// Shows a message for six seconds, or until a click.
function say(text, keep = false) {
  $("message").textContent = text;
  $("message").hidden = !text;
  clearTimeout(say.timer);
  if (!keep) say.timer = setTimeout(() => say(""), 6000);
}
$("message").onclick = () => say("");

// Runs an action; its error becomes a message.
const attempt = (action) => (...given) => Promise.resolve(action(...given)).catch((error) => say(error.message));

function item(parent, ...children) {
  const entry = document.createElement("li");
  entry.append(...children);
  parent.append(entry);
  return entry;
}

function make(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

function showPictures() {
  const list = $("pictures");
  const there = new Map([...list.children].map((entry) => [entry.dataset.id, entry]));
  for (const picture of state.pictures) {
    let entry = there.get(picture.id);
    if (!entry) {
      const thumb = make("img", { loading: "lazy", alt: "", src: `/api/${ofPicture(picture.id, "thumbnail")}` });
      entry = item(list, thumb, make("span", { textContent: picture.id }), make("i", {}));
      entry.dataset.id = picture.id;
      entry.tabIndex = 0;
      entry.onclick = attempt(() => open(picture.id));
      entry.onkeydown = (event) => event.key === "Enter" && entry.onclick();
    }
    const kind = picture.accepted ? "accepted" : picture.labelled ? "labelled" : "";
    entry.lastChild.className = kind;
    entry.lastChild.title = { "": "no strokes", labelled: "has strokes", accepted: "has an accepted prediction" }[kind];
    entry.setAttribute("aria-current", picture.id === current?.id);
  }
}

function showClasses() {
  const list = $("classes");
  if (list.contains(document.activeElement) && document.activeElement.type === "text") return; // a name is being typed
  const shares = sharesOfClasses();
  list.replaceChildren();
  state.classes.forEach((entry, number) => {
    const colour = make("input", { type: "color", value: entry.colour, title: "colour" });
    const name = make("input", { type: "text", value: entry.name, maxLength: 60, ariaLabel: `name of class ${number + 1}` });
    const share = make("small", { textContent: shares ? `${Math.round(100 * shares[number])}%` : "" });
    share.title = "share of the prediction of this picture";
    const row = item(list, make("kbd", { textContent: number < 9 ? number + 1 : "" }), colour, name, share);
    row.setAttribute("aria-current", number === chosen.class);
    row.onclick = () => choose({ class: number, tool: chosen.tool === "erase" ? "brush" : chosen.tool });
    name.onfocus = () => choose({ class: number });
    colour.onchange = name.onchange = attempt(() => {
      const classes = state.classes.map((other) => ({ ...other }));
      classes[number] = { name: name.value, colour: colour.value };
      name.blur();
      return saveClasses(classes);
    });
    name.onkeydown = (event) => {
      event.stopPropagation();
      if (event.key === "Enter") name.blur();
    };
  });
}

async function saveClasses(classes) {
  try {
    await post("classes", { classes });
  } finally {
    await refresh();
  }
}

function sharesOfClasses() {
  const found = view.picture && view.found;
  if (!found) return null;
  const counts = new Array(state.classes.length).fill(0);
  for (const number of found.classes) counts[number] += 1;
  return counts.map((count) => count / found.classes.length);
}

function showTraining() {
  const { running, activity, round, step, steps } = state.training;
  $("train").replaceChildren(running ? "Pause " : "Train ", make("kbd", { textContent: "T" }));
  const where = running ? `round ${round}: ${activity}${activity === "training" ? `, step ${step} of ${steps}` : ""}` : activity;
  $("training").textContent = state.training.predicted ? `${where}. Predictions of round ${state.training.predicted}.` : where;
}

function choose(what) {
  Object.assign(chosen, what);
  for (const button of document.querySelectorAll("[data-tool]")) button.ariaPressed = button.dataset.tool === chosen.tool;
  for (const button of document.querySelectorAll("[data-source]")) button.ariaPressed = button.dataset.source === chosen.source;
  $("export").href = `/api/export?source=${chosen.source}`;
  [...$("classes").children].forEach((row, number) => row.setAttribute("aria-current", number === chosen.class));
  $("size").value = $("size-value").textContent = chosen.width;
}

// A picture

async function open(id) {
  const begun = performance.now();
  open.wanted = id;
  const bitmap = await createImageBitmap(await getBlob(ofPicture(id, "image")));
  const found = await get(ofPicture(id, "strokes"));
  if (open.wanted !== id) return; // the person has gone on
  drawn = null;
  current = Object.assign(opened.get(id) || { undo: [], redo: [] }, { id, ...found });
  opened.set(id, current);
  for (const change of changes.of(id)) apply(current, change); // not sent yet
  view.layers = null;
  view.show(bitmap);
  showStrokes();
  showPictures();
  document.querySelector('#pictures [aria-current="true"]')?.scrollIntoView({ block: "nearest" });
  performance.measure("picture shown", { start: begun });
  await predict();
}

function showStrokes() {
  if (current) view.setStrokes([...current.strokes, ...(drawn ? [inkOf(drawn)] : [])]);
}

// Fetches the strokes of the open picture: the server has some that this page does not have.
async function sync() {
  const picture = current;
  let found = await get(ofPicture(picture.id, "strokes"));
  // An older version was on its way while this page's own change was saved.
  if (found.version < picture.version) found = await get(ofPicture(picture.id, "strokes"));
  Object.assign(picture, found);
  for (const change of changes.of(picture.id)) apply(picture, change);
  showMark(picture.id);
  if (picture !== current) return;
  showStrokes();
  await predict();
}

// The prediction of the picture; while one is on its way, the next call waits and takes the place of others that wait.
async function predict() {
  if (!current) return;
  if (predict.running) {
    predict.again = true;
    return;
  }
  predict.running = true;
  try {
    do {
      predict.again = false;
      const begun = performance.now();
      const { id } = current;
      const found = await prediction(id, chosen.source);
      if (id !== current.id) predict.again = true;
      else {
        view.setPrediction(found);
        performance.measure("prediction shown", { start: begun });
        showClasses();
      }
    } while (predict.again);
  } finally {
    predict.running = false;
  }
}

function saved(id, version) {
  showMark(id);
  if (id !== current?.id) return;
  if (version > current.version + 1) attempt(sync)(); // another page has drawn, too
  else {
    current.version = Math.max(current.version, version);
    attempt(predict)();
  }
}

function refused(id, reason) {
  say(`${id}: ${reason}`);
  if (id === current?.id) attempt(sync)();
}

// The dot beside the picture's name.
function showMark(id) {
  const picture = state.pictures.find((one) => one.id === id);
  const strokes = opened.get(id)?.strokes;
  if (!picture || !strokes) return;
  picture.labelled = strokes.some((stroke) => stroke.class !== UNLABELLED);
  picture.accepted = strokes.some((stroke) => stroke.source === "prediction");
  showPictures();
}

function apply(picture, { add, remove }) {
  const gone = new Set(remove);
  const there = new Set(picture.strokes.map((stroke) => stroke.id));
  picture.strokes = [...picture.strokes.filter((stroke) => !gone.has(stroke.id)), ...add.filter((stroke) => !there.has(stroke.id))];
}

function stepBack(from, to) {
  const strokes = current?.[from].pop();
  if (!strokes) return;
  const begun = performance.now();
  const change = from === "undo" ? { add: [], remove: strokes.map((stroke) => stroke.id) } : { add: strokes, remove: [] };
  apply(current, change);
  current[to].push(strokes);
  showStrokes();
  requestAnimationFrame(() => performance.measure("undo", { start: begun }));
  changes.push({ id: current.id, ...change });
}

const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const now = () => Math.round(Date.now() / 1000);

// Pointer

const pointers = new Map();
let drawn = null; // the line under way: its stroke, tool and pointer
let panning = false;
let space = false;

function down(event) {
  if (!current) return;
  if (drawn?.kind === "pen" || pointers.size > 1) return; // a hand lies beside the pen; a third finger
  $("canvas").focus();
  $("canvas").setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  if (pointers.size === 2) {
    drawn = null; // two fingers move and zoom
    showStrokes();
    return;
  }
  panning = space || event.button === 1;
  if (panning || event.button !== 0) return;
  const number = chosen.tool === "erase" ? UNLABELLED : chosen.class;
  const usual = { id: newId(), kind: "line", class: number, width: chosen.width, source: "human", time: now() };
  const stroke = { ...usual, points: [view.place(event)] };
  drawn = { stroke, inked: 1, tool: chosen.tool, pointer: event.pointerId, kind: event.pointerType };
  inkTo(event);
}

function move(event) {
  const before = pointers.get(event.pointerId);
  if (current) view.pointer = chosen.tool === "fill" ? null : [...view.place(event), chosen.width];
  if (pointers.size === 2 && before) twoFingers(before, event);
  else if (panning && before) view.pan(event.clientX - before.clientX, event.clientY - before.clientY);
  else if (drawn?.pointer === event.pointerId) {
    const { points } = drawn.stroke;
    for (const part of event.getCoalescedEvents?.() || [event]) {
      const [x, y] = view.place(part);
      if (Math.hypot(x - points.at(-1)[0], y - points.at(-1)[1]) >= APART) points.push([x, y]);
    }
    inkTo(event);
  }
  if (before) pointers.set(event.pointerId, event);
  view.draw();
}

// One of two fingers moves: the picture follows their middle and their distance.
function twoFingers(before, event) {
  const other = [...pointers.values()].find((one) => one.pointerId !== event.pointerId);
  const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
  const box = $("canvas").getBoundingClientRect();
  view.pan((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
  const middle = [(event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top];
  view.zoom(distance(event) / Math.max(1, distance(before)), ...middle);
}

// Paints the newest piece of the line, and measures the time from the pointer's event.
function inkTo(event) {
  const ink = inkOf(drawn);
  view.addStroke({ ...ink, points: ink.points.slice(drawn.inked - 1) });
  drawn.inked = ink.points.length;
  view.paint();
  performance.measure("pointer to ink", { start: event.timeStamp });
  if (performance.getEntriesByName("pointer to ink").length > 5000) performance.clearMeasures("pointer to ink");
}

const inkOf = ({ stroke, tool }) => ({ ...stroke, width: tool === "fill" ? 2 : stroke.width });

async function up(event) {
  pointers.delete(event.pointerId);
  panning = false;
  if (drawn?.pointer !== event.pointerId) return;
  const { stroke, tool } = drawn;
  const picture = current;
  drawn = null;
  stroke.points = stroke.points.map((point) => point.map((value) => Math.round(10 * value) / 10));
  if (tool === "fill") {
    try {
      await label(picture, "fill", { id: stroke.id, time: stroke.time, class: stroke.class, points: stroke.points.slice(0, MOST_POINTS) });
    } finally {
      showStrokes();
    }
    return;
  }
  const strokes = [];
  for (let start = 0; start === 0 || start < stroke.points.length - 1; start += MOST_POINTS - 1) {
    strokes.push({ ...stroke, id: start ? newId() : stroke.id, points: stroke.points.slice(start, start + MOST_POINTS) });
  }
  remember(picture, strokes);
  showStrokes();
  changes.push({ id: picture.id, add: strokes, remove: [] });
}

function remember(picture, strokes) {
  apply(picture, { add: strokes, remove: [] });
  picture.undo.push(strokes);
  picture.redo.length = 0;
}

// Lets the server label pixels of a picture: "fill" or "accept". Returns the new strokes.
async function label(picture, how, wanted) {
  await changes.send();
  const { version, strokes } = await post(ofPicture(picture.id, how), wanted);
  if (strokes.length) remember(picture, strokes);
  if (picture === current) showStrokes();
  saved(picture.id, version);
  return strokes;
}

async function accept() {
  if (!current) return;
  const strokes = await label(current, "accept", { source: chosen.source, ids: state.classes.map(newId), time: now() });
  if (!strokes.length) say("The prediction is not sure of any more pixels here.");
}

// Actions

const open_ = (step) => {
  const place = state.pictures.findIndex((picture) => picture.id === current?.id) + step;
  if (state.pictures[place]) return open(state.pictures[place].id);
};

async function next() {
  if (current && !state.pictures.find((one) => one.id === current.id)?.labelled) passed.add(current.id);
  const query = [...passed].map((id) => `passed=${encodeURIComponent(id)}`).join("&");
  const slow = setTimeout(() => { $("reason").textContent = "Looking at all pictures..."; }, 400);
  const found = await get(`next?${query}`).finally(() => clearTimeout(slow));
  $("reason").textContent = found.id ? `${found.id}: ${found.reason}` : "There is no other picture without strokes.";
  if (found.id) await open(found.id);
  else passed.clear();
}

const train = () => post("training", { run: !state.training.running });

function toggle(slider, usual) {
  slider.value = Number(slider.value) ? 0 : usual;
  slider.oninput();
}

function resize(factor) {
  choose({ width: Math.min(60, Math.max(1, Math.round(chosen.width * factor + Math.sign(factor - 1)))) });
  if (view.pointer) view.pointer[2] = chosen.width;
  view.draw();
}

async function add(files) {
  const [count, notes, errors] = [files.length, [], []];
  let last = null;
  for (const [number, file] of [...files].entries()) {
    say(`Adding picture ${number + 1} of ${count}`);
    try {
      const { id, note } = await upload(file);
      last = id;
      if (note) notes.push(note);
    } catch (error) {
      errors.push(error.message);
    }
  }
  $("files").value = ""; // so that the same file can be chosen again
  await refresh();
  const smaller = notes.length > 1 ? `${notes.length} pictures were made smaller (--long_side)` : notes.join();
  if (errors.length) say(`${errors.length} of ${count} pictures not added: ${errors.join("; ")}`, true);
  else say(smaller);
  if (last) await open(last);
}

const KEYS = {
  "[": () => resize(1 / 1.25),
  "]": () => resize(1.25),
  b: () => choose({ tool: "brush" }),
  e: () => choose({ tool: "erase" }),
  f: () => choose({ tool: "fill" }),
  o: () => toggle($("prediction-opacity"), 45),
  u: () => toggle($("entropy-opacity"), 70),
  r: () => predict(),
  t: () => train(),
  n: () => next(),
  a: () => accept(),
  0: () => view.fit(),
  ArrowUp: () => open_(-1),
  ArrowLeft: () => open_(-1),
  ArrowDown: () => open_(1),
  ArrowRight: () => open_(1),
};

const REPEATED = /^([[\]z]|Arrow.*)$/i; // keys that may be held

function key(event) {
  if (event.target.matches?.('input[type="text"]')) return;
  const isSpace = event.key === " " && !event.target.matches?.("button, summary, .button");
  const hasAltGr = event.getModifierState("AltGraph");
  const isCommand = (event.ctrlKey || event.metaKey) && !hasAltGr;
  if (event.altKey && !hasAltGr) return;
  let action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (isCommand) action = event.key.toLowerCase() === "z" ? () => stepBack(...(event.shiftKey ? ["redo", "undo"] : ["undo", "redo"])) : null;
  else if (/^[1-9]$/.test(event.key)) {
    const number = Number(event.key) - 1;
    action = () => number < state.classes.length && choose({ class: number, tool: chosen.tool === "erase" ? "brush" : chosen.tool });
  }
  if (event.target.matches?.('input[type="range"]') && event.key.startsWith("Arrow")) return;
  if (event.repeat && !REPEATED.test(event.key)) action = null;
  space ||= isSpace;
  if (action || isSpace) event.preventDefault();
  if (action) attempt(action)();
}

// What the server tells

async function told(event) {
  if (event.kind === "training") {
    state.training = event.training;
    showTraining();
    const before = predicted;
    predicted = event.training.predicted;
    if (predicted && !before) say("The network predicts, too: choose Network. After a few rounds, it may be better than the instant prediction.");
    plot($("curves"), await get("curves"));
    if (predicted !== before) await predict();
  } else if (event.kind === "strokes") {
    if (event.id !== current?.id) await refresh();
    else if (event.version > current.version && !changes.of(event.id).length) await sync(); // else `saved` looks
  } else await refresh();
}

function listen() {
  const events = new EventSource("/api/events");
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2000); // after an answer that was no stream
  };
  events.onmessage = (message) => attempt(told)(JSON.parse(message.data));
  events.onopen = attempt(async () => {
    await refresh();
    await changes.send();
    if (current) await sync();
    plot($("curves"), await get("curves"));
  });
}

// Start

for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => choose({ tool: button.dataset.tool });
for (const button of document.querySelectorAll("[data-source]")) {
  button.onclick = attempt(() => {
    choose({ source: button.dataset.source });
    return current && predict();
  });
}
for (const name of ["ink", "prediction", "entropy"]) {
  $(`${name}-opacity`).oninput = () => {
    view.opacity[name] = $(`${name}-opacity`).value / 100;
    view.draw();
  };
}
$("size").oninput = () => choose({ width: Number($("size").value) });
$("undo").onclick = () => stepBack("undo", "redo");
$("redo").onclick = () => stepBack("redo", "undo");
$("accept").onclick = attempt(accept);
$("next").onclick = attempt(next);
$("train").onclick = attempt(train);
$("export").onclick = () => say("Packing. The first time after a training, this takes half a minute.");
$("samples").onclick = attempt(() => post("samples", {}));
$("files").onchange = attempt(() => add($("files").files));
$("add-class").onclick = attempt(() => {
  const colours = ["#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#fabed4"];
  const names = state.classes.map((entry) => entry.name);
  let number = state.classes.length;
  while (names.includes(`class ${number}`)) number += 1;
  return saveClasses([...state.classes, { name: `class ${number}`, colour: colours[state.classes.length % colours.length] }]);
});
const canvas = $("canvas");
canvas.onpointerdown = down;
canvas.onpointermove = move;
canvas.onpointerup = attempt(up);
canvas.onpointercancel = (event) => {
  pointers.delete(event.pointerId);
  if (drawn?.pointer === event.pointerId) drawn = null; // not if a hand beside the pen is meant
  showStrokes();
};
addEventListener("blur", () => { space = false; });
canvas.onpointerleave = () => { view.pointer = null; view.draw(); };
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (current) view.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
}, { passive: false });
const main = document.querySelector("main");
addEventListener("dragover", (event) => { event.preventDefault(); main.classList.add("dropping"); });
addEventListener("dragleave", (event) => event.relatedTarget || main.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  main.classList.remove("dropping");
  attempt(add)(event.dataTransfer.files);
});
addEventListener("keydown", key);
addEventListener("keyup", (event) => { if (event.key === " ") space = false; });
choose({});
listen();
