// The page of the studio: its state, its buttons and its keys.

import { Changes, get, post, prediction, upload } from "./api.js";
import { plot } from "./curves.js";
import { View } from "./view.js";

const UNLABELLED = 255;
const $ = (id) => document.getElementById(id);
const view = new View($("canvas"));
const changes = new Changes(saved, say);

let state = { pictures: [], classes: [], training: {} };
let current = null; // {id, version, strokes, undo, redo}
let chosen = { class: 0, tool: "brush", width: 6, source: "instant" };
const passed = new Set(); // pictures that the person skipped with N
const histories = new Map(); // picture -> {undo, redo}

// State

async function refresh() {
  state = await get("state");
  view.colours = state.classes.map((entry) => entry.colour);
  document.title = `${state.folder} - Scribble studio`;
  $("folder").textContent = state.folder;
  $("command").textContent = state.command;
  $("welcome").hidden = state.pictures.length > 0;
  chosen.class = Math.min(chosen.class, state.classes.length - 1);
  showPictures();
  showClasses();
  showTraining();
  if (!current && state.pictures.length) await open(state.pictures[0].id);
}

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => say(""), 6000);
}

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
      const thumb = make("img", { loading: "lazy", alt: "", src: `/api/pictures/${picture.id}/image` });
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
  if (list.contains(document.activeElement)) return; // a name is being typed
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
  view.colourPrediction();
  showStrokes();
}

function sharesOfClasses() {
  const found = view.picture && view.found;
  if (!found) return null;
  const counts = new Array(state.classes.length).fill(0);
  for (const number of found.classes) counts[number] += 1;
  return counts.map((count) => count / found.classes.length);
}

function showTraining() {
  const { running, activity, round, step, steps, predicted } = state.training;
  $("train").replaceChildren(running ? "Pause " : "Train ", make("kbd", { textContent: "T" }));
  const where = running ? `round ${round}: ${activity}${activity === "training" ? `, step ${step} of ${steps}` : ""}` : activity;
  $("training").textContent = predicted ? `${where}. Predictions of round ${predicted}.` : where;
}

function choose(what) {
  Object.assign(chosen, what);
  for (const button of document.querySelectorAll("[data-tool]")) button.ariaPressed = button.dataset.tool === chosen.tool;
  for (const button of document.querySelectorAll("[data-source]")) button.ariaPressed = button.dataset.source === chosen.source;
  [...$("classes").children].forEach((row, number) => row.setAttribute("aria-current", number === chosen.class));
  $("size").value = $("size-value").textContent = chosen.width;
}

// A picture

async function open(id) {
  const begun = performance.now();
  const [blob, document_] = await Promise.all([
    fetch(`/api/pictures/${id}/image`).then((response) => response.blob()),
    get(`pictures/${id}/strokes`),
  ]);
  const bitmap = await createImageBitmap(blob);
  const history = histories.get(id) || { undo: [], redo: [] };
  histories.set(id, history);
  current = { id, ...document_, ...history };
  for (const change of changes.of(id)) apply(change); // not sent yet
  view.layers = null;
  view.show(bitmap);
  showStrokes();
  showPictures();
  document.querySelector('#pictures [aria-current="true"]')?.scrollIntoView({ block: "nearest" });
  performance.measure("picture shown", { start: begun });
  await predict();
}

function showStrokes() {
  if (current) view.setStrokes(current.strokes);
}

// The prediction of the picture; while one is on its way, the next call waits and takes the place of others that wait.
async function predict() {
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
  if (id === current?.id) current.version = Math.max(current.version, version);
  const picture = state.pictures.find((one) => one.id === id);
  if (picture && id === current?.id) {
    picture.labelled = current.strokes.some((stroke) => stroke.class !== UNLABELLED);
    picture.accepted = current.strokes.some((stroke) => stroke.source === "prediction");
  }
  showPictures();
  attempt(predict)();
}

function apply({ add, remove }) {
  const gone = new Set(remove);
  const there = new Set(current.strokes.map((stroke) => stroke.id));
  current.strokes = [...current.strokes.filter((stroke) => !gone.has(stroke.id)), ...add.filter((stroke) => !there.has(stroke.id))];
}

// Changes the picture's strokes, and remembers how to take the change back.
function change(add, remove, isSent = false) {
  const gone = current.strokes.filter((stroke) => remove.includes(stroke.id));
  apply({ add, remove });
  current.undo.push({ add: gone, remove: add.map((stroke) => stroke.id), was: { add, remove } });
  current.redo.length = 0;
  if (!isSent) changes.push({ id: current.id, add, remove });
}

function stepBack(from, to) {
  const entry = current?.[from].pop();
  if (!entry) return;
  const begun = performance.now();
  const { add, remove } = from === "undo" ? entry : entry.was;
  apply({ add, remove });
  current[to].push(entry);
  showStrokes();
  requestAnimationFrame(() => performance.measure("undo", { start: begun }));
  changes.push({ id: current.id, add, remove });
}

const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const now = () => Math.round(Date.now() / 1000);

// Pointer

const pointers = new Map();
let drawn = null; // the stroke under way
let panning = false;
let space = false;

function down(event) {
  if (!current) return;
  $("canvas").focus();
  $("canvas").setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  if (pointers.size === 2) {
    drawn = null; // two fingers zoom and pan
    showStrokes();
    return;
  }
  panning = space || event.button === 1;
  if (panning || event.button !== 0) return;
  const number = chosen.tool === "erase" ? UNLABELLED : chosen.class;
  drawn = { id: newId(), kind: "line", class: number, width: chosen.width, points: [view.place(event)], source: "human", time: now() };
  inkTo(event);
}

function move(event) {
  const before = pointers.get(event.pointerId);
  if (current) view.pointer = chosen.tool === "fill" ? null : [...view.place(event), chosen.width];
  if (pointers.size === 2 && before) {
    const other = [...pointers.values()].find((one) => one.pointerId !== event.pointerId);
    const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    const box = $("canvas").getBoundingClientRect();
    view.zoom(distance(event) / Math.max(1, distance(before)), other.clientX - box.left, other.clientY - box.top);
  } else if (panning && before) {
    view.pan(event.clientX - before.clientX, event.clientY - before.clientY);
  } else if (drawn) {
    for (const part of event.getCoalescedEvents?.() || [event]) drawn.points.push(view.place(part));
    inkTo(event);
  }
  if (before) pointers.set(event.pointerId, event);
  view.draw();
}

// Paints the newest piece of the stroke, and measures the time from the pointer's event.
function inkTo(event) {
  view.addStroke({ ...drawn, width: chosen.tool === "fill" ? 2 : drawn.width, points: drawn.points.slice(-3) });
  view.paint();
  performance.measure("pointer to ink", { start: event.timeStamp });
}

async function up(event) {
  pointers.delete(event.pointerId);
  panning = false;
  const stroke = drawn;
  drawn = null;
  if (!stroke) return;
  stroke.points = stroke.points.map((point) => point.map((value) => Math.round(10 * value) / 10));
  if (chosen.tool === "fill") {
    const { id, time } = stroke;
    try {
      await changes.send();
      received(await post(`pictures/${current.id}/fill`, { id, time, class: stroke.class, points: stroke.points }));
    } finally {
      showStrokes();
    }
  } else {
    change([stroke], []);
  }
}

function received({ version, strokes }) {
  change(strokes, [], true);
  showStrokes();
  saved(current.id, version);
}

async function accept() {
  await changes.send();
  const ids = state.classes.map(newId);
  const { id } = current;
  const answer = await post(`pictures/${id}/accept`, { source: chosen.source, ids, time: now() });
  if (!answer.strokes.length) say("The prediction is not sure of any more pixels here.");
  else if (id === current.id) received(answer);
}

// Actions

const open_ = (step) => {
  const place = state.pictures.findIndex((picture) => picture.id === current?.id) + step;
  if (state.pictures[place]) return open(state.pictures[place].id);
};

async function next() {
  if (current && !state.pictures.find((one) => one.id === current.id)?.labelled) passed.add(current.id);
  const query = [...passed].map((id) => `passed=${encodeURIComponent(id)}`).join("&");
  const found = await get(`next?${query}`);
  $("reason").textContent = found.id ? `${found.id}: ${found.reason}` : "All pictures have strokes.";
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
  let problems = 0;
  let last = null;
  for (const [number, file] of [...files].entries()) {
    say(`Adding picture ${number + 1} of ${files.length}`);
    try {
      last = (await upload(file)).id;
    } catch (error) {
      problems += 1;
      say(error.message);
    }
  }
  await refresh();
  if (state.notes.length && !problems) say(state.notes.at(-1));
  else if (!problems) say("");
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

function key(event) {
  if (event.target.matches?.('input[type="text"]')) return;
  if (event.key === " ") space = true;
  const isCommand = event.ctrlKey || event.metaKey;
  let action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (isCommand) action = event.key.toLowerCase() === "z" ? () => stepBack(...(event.shiftKey ? ["redo", "undo"] : ["undo", "redo"])) : null;
  else if (/^[1-9]$/.test(event.key)) {
    const number = Number(event.key) - 1;
    action = () => number < state.classes.length && choose({ class: number, tool: chosen.tool === "erase" ? "brush" : chosen.tool });
  }
  if (event.target.matches?.('input[type="range"]') && event.key.startsWith("Arrow")) return;
  if (!action && event.key !== " ") return;
  if (event.key === " " && event.target.matches?.("button, summary")) return;
  event.preventDefault();
  if (action) attempt(action)();
}

// What the server tells

async function told(event) {
  if (event.kind === "training") {
    const before = state.training.predicted;
    await refresh();
    plot($("curves"), await get("curves"));
    if (state.training.predicted !== before) {
      if (!before) choose({ source: "network" });
      if (current) await predict();
    }
  } else if (event.kind === "strokes") {
    if (event.id !== current?.id || event.version <= current.version) {
      state = await get("state");
      return showPictures();
    }
    if (changes.of(event.id).length) return; // the answer to this page's own change comes next
    const found = await get(`pictures/${event.id}/strokes`);
    if (found.version > current.version && !drawn) {
      Object.assign(current, found); // another page has drawn
      showStrokes();
      await predict();
    }
  } else await refresh();
}

function listen() {
  const events = new EventSource("/api/events");
  events.onmessage = (message) => attempt(told)(JSON.parse(message.data));
  events.onopen = attempt(async () => {
    await changes.send();
    await refresh();
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
canvas.onpointercancel = (event) => { pointers.delete(event.pointerId); drawn = null; showStrokes(); };
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
