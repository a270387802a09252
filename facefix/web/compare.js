// What `compare` does in the browser. All text is set as text, never as markup.
const root = element.querySelector(".compare");
const emptyPage = [...root.childNodes];
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let value = null;      // what the server told last
let choice = new Map();  // face number -> {on, strength}
let parts = {};        // what is on the page, by name
let waiting = null;

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, told] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), told);
    else if (told === true) made.setAttribute(name, "");
    else if (told !== false && told !== null) made.setAttribute(name, told);
  }
  made.append(...children);
  return made;
}

function build() {
  choice = new Map();
  for (const face of value.faces) {
    if (face.strength !== null) choice.set(face.number, {on: face.strength > 0, strength: face.strength || 1});
  }
  parts = {rows: new Map(), boxes: new Map()};
  const before = make("img", {class: "before", alt: "The photo before", src: value.before, draggable: "false"});
  parts.after = make("img", {class: "after", alt: "The photo after", src: value.after, draggable: "false"});
  parts.boxes_layer = make("div", {class: "boxes", role: "group", "aria-label": "Faces in the picture"});
  for (const face of value.faces) parts.boxes_layer.append(boxOf(face));
  parts.line = make("div", {class: "line", "aria-hidden": "true"}, make("span", {class: "grip"}));
  parts.sheet = make("div", {class: "sheet"}, before, parts.after, parts.line, parts.boxes_layer);
  parts.sheet.style.setProperty("--ratio", value.width / value.height);
  parts.sheet.style.setProperty("--full", value.width / devicePixelRatio + "px");
  parts.view = make("div", {class: "view"}, parts.sheet);
  movable();
  root.replaceChildren(...[tools(), parts.view, told(), value.faces.length ? list() : null].filter(Boolean));
  place(50);
  for (const face of value.faces) paint(face.number);
  // small pictures of the faces come when the large one is there
  before.decode().then(() => value.faces.forEach(face => portray(before, face)), () => {});
}

function tools() {
  parts.range = make("input", {type: "range", min: 0, max: 100, step: 0.5, value: 50, class: "where",
    "aria-label": "Line between before and after", oninput: () => place(Number(parts.range.value))});
  const full = make("button", {type: "button", class: "full", "aria-pressed": "false", onclick: () => {
    const on = parts.view.classList.toggle("full");
    full.setAttribute("aria-pressed", on);
    parts.view.scrollTo((parts.view.scrollWidth - parts.view.clientWidth) / 2,
      (parts.view.scrollHeight - parts.view.clientHeight) / 2);
  }}, "Full size");
  const boxes = make("button", {type: "button", class: "boxed", "aria-pressed": "true", onclick: () => {
    boxes.setAttribute("aria-pressed", !parts.boxes_layer.toggleAttribute("hidden"));
  }}, "Boxes");
  const ends = text => make("span", {class: "end", "aria-hidden": "true"}, text);
  return make("div", {class: "tools"}, make("label", {class: "slide"}, ends("Before"), parts.range, ends("After")),
    full, value.faces.length ? boxes : "");
}

function told() {
  parts.summary = make("p", {class: "summary", role: "status", "aria-live": "polite"}, value.summary);
  parts.notes = make("ul", {class: "notes"}, ...value.notes.map(note => make("li", {}, note)));
  return make("div", {class: "told"}, parts.summary, parts.notes);
}

function boxOf(face) {
  const [x0, y0, x1, y1] = face.box.map(part => 100 * part);
  const box = make("button", {type: "button", class: "face", onclick: () => turn(face.number),
    onfocus: () => light(face.number, true), onblur: () => light(face.number, false),
    onmouseenter: () => light(face.number, true), onmouseleave: () => light(face.number, false)},
    make("span", {class: "number"}, String(face.number)));
  Object.assign(box.style, {left: x0 + "%", top: y0 + "%", width: x1 - x0 + "%", height: y1 - y0 + "%"});
  box.toggleAttribute("data-inside", y0 < 5);  // no room above it for its number
  if (!choice.has(face.number)) box.setAttribute("aria-disabled", "true");
  parts.boxes.set(face.number, box);
  return box;
}

function list() {
  const rows = value.faces.map(rowOf);
  const many = choice.size > 1;
  const all = on => () => { choice.forEach((face, number) => { face.on = on; paint(number); }); send(); };
  const every = make("input", {type: "range", min: 0, max: 100, step: 1, value: 100,
    "aria-label": "Strength of all faces",
    oninput: () => choice.forEach((face, number) => {
      face.strength = Number(every.value) / 100;
      face.on = face.strength > 0;
      paint(number);
    }),
    onchange: () => send()});
  const head = make("div", {class: "head"}, make("h3", {}, "Faces"));
  if (many) {
    head.append(make("button", {type: "button", class: "all", onclick: all(true)}, "Include all"),
      make("button", {type: "button", class: "none", onclick: all(false)}, "Leave all"),
      make("label", {class: "every"}, "Strength of all", every));
  }
  return make("section", {class: "faces", "aria-label": "Faces"}, head,
    make("p", {class: "hint"}, "Click a face in the picture or tick it here to include it or leave it as it was. "
      + "No network runs again."),
    make("ul", {}, ...rows));
}

function rowOf(face) {
  const number = face.number;
  const chosen = choice.get(number);
  const row = {
    thumb: make("canvas", {width: 56, height: 56, "aria-hidden": "true"}),
    tick: make("input", {type: "checkbox", disabled: !chosen, onchange: () => turn(number)}),
    what: make("span", {class: "what"}),
    range: make("input", {type: "range", min: 0, max: 100, step: 1, "aria-label": "Strength of face " + number,
      oninput: () => { chosen.strength = row.range.value / 100; chosen.on = chosen.strength > 0; paint(number); },
      onchange: () => send()}),
    percent: make("output", {}),
  };
  row.item = make("li", {"data-face": number, onmouseenter: () => light(number, true),
    onmouseleave: () => light(number, false)}, row.thumb,
    make("div", {class: "who"}, make("label", {}, row.tick, "Face " + number), row.what),
    chosen ? make("div", {class: "how"}, row.range, row.percent) : "");
  parts.rows.set(number, row);
  return row.item;
}

// The face's row and box as its choice has them.
function paint(number) {
  const face = value.faces.find(each => each.number === number);
  const chosen = choice.get(number);
  const on = Boolean(chosen && chosen.on);
  const row = parts.rows.get(number), box = parts.boxes.get(number);
  const facts = [chosen ? (on ? "restored" : "left as it was, by your choice") : face.outcome];
  if (!chosen && face.reason) facts[0] += ": " + face.reason;
  if (chosen && on && face.restorer) facts.push(face.restorer + (face.size ? " at " + face.size + " px" : ""));
  facts.push(face.width_px + " px wide");
  row.what.textContent = facts.join(" \u00b7 ");
  row.tick.checked = on;
  row.item.className = on ? "on" : chosen ? "off" : "never";
  box.className = "face " + row.item.className;
  box.setAttribute("aria-pressed", on);
  box.setAttribute("aria-label", "Face " + number + ", " + row.what.textContent);
  box.title = "Face " + number + ": " + row.what.textContent;
  if (chosen) {
    const percent = Math.round(100 * chosen.strength);
    row.range.value = percent;
    row.percent.textContent = on ? percent + " %" : "left";
  }
}

function light(number, on) {
  parts.boxes.get(number)?.classList.toggle("lit", on);
  parts.rows.get(number)?.item.classList.toggle("lit", on);
}

function turn(number) {
  const row = parts.rows.get(number);
  const chosen = choice.get(number);
  row.item.scrollIntoView({block: "nearest", behavior: still ? "auto" : "smooth"});
  if (!chosen) return;
  chosen.on = !chosen.on;
  chosen.strength ||= 1;
  paint(number);
  send();
}

// Tells the server how much of each face is wanted, when the hand has come to rest.
function send() {
  clearTimeout(waiting);
  root.classList.add("busy");
  waiting = setTimeout(() => {
    const strengths = {};
    choice.forEach((face, number) => { strengths[number] = face.on ? face.strength : 0; });
    trigger("choose", {strengths});
  }, 200);
}

function portray(before, face) {
  const [x0, y0, x1, y1] = face.box;
  const [w, h] = [before.naturalWidth, before.naturalHeight];
  const side = 1.25 * Math.max((x1 - x0) * w, (y1 - y0) * h);
  const [x, y] = [(x0 + x1) / 2 * w - side / 2, (y0 + y1) / 2 * h - side / 2];
  const pen = parts.rows.get(face.number)?.thumb.getContext("2d");
  if (pen) pen.drawImage(before, x, y, side, side, 0, 0, 56, 56);
}

function place(percent) {
  const at = Math.min(100, Math.max(0, percent));
  parts.range.value = at;
  parts.range.setAttribute("aria-valuetext", Math.round(100 - at) + " % of the picture shows after");
  parts.after.style.clipPath = "inset(0 0 0 " + at + "%)";
  parts.line.style.left = at + "%";
}

// The line follows the pointer; at full size the grip alone does, and a mouse moves the picture.
function movable() {
  let mode = null, from = null;
  const at = event => {
    const box = parts.sheet.getBoundingClientRect();
    place(100 * (event.clientX - box.left) / box.width);
  };
  parts.sheet.addEventListener("pointerdown", event => {
    if (event.button || event.target.closest(".face")) return;
    const full = parts.view.classList.contains("full");
    mode = !full || event.target.closest(".line") ? "line" : event.pointerType === "mouse" ? "pan" : null;
    if (!mode) return;
    event.preventDefault();
    from = [event.clientX, event.clientY, parts.view.scrollLeft, parts.view.scrollTop];
    parts.sheet.setPointerCapture(event.pointerId);
    if (mode === "line") at(event);
  });
  parts.sheet.addEventListener("pointermove", event => {
    if (mode === "line") at(event);
    if (mode === "pan") parts.view.scrollTo(from[2] + from[0] - event.clientX, from[3] + from[1] - event.clientY);
  });
  for (const end of ["pointerup", "pointercancel"]) parts.sheet.addEventListener(end, () => { mode = null; });
}

// The same photo blended anew: the picture changes when it has come, and nothing else moves.
function renew() {
  const next = new Image();
  const wanted = value.after;
  const done = () => {
    if (value.after !== wanted) return;
    parts.after.src = wanted;
    root.classList.remove("busy");
  };
  next.src = wanted;
  next.decode().then(done, done);
  parts.summary.textContent = value.summary;
  parts.notes.replaceChildren(...value.notes.map(note => make("li", {}, note)));
}

function show() {
  const old = value;
  value = props.value && props.value.before ? props.value : null;
  if (!value) {
    root.replaceChildren(...emptyPage);
    root.classList.remove("busy");
  } else if (old && old.before === value.before) renew();
  else {
    root.classList.remove("busy");
    build();
  }
}

watch("value", show);
show();
