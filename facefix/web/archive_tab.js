// Shows the boards that `value` names in a frame, one at a time; what was decided on them is in the browser's storage.
const root = element.querySelector(".board");
const emptyPage = [...root.childNodes];
const frame = document.createElement("iframe");
frame.title = "The board: every restored face before and after";
frame.addEventListener("load", () => {
  const parts = frame.contentDocument?.getElementById("parts");
  if (parts) parts.hidden = true;
  const foot = frame.contentDocument?.querySelector("footer");
  if (foot) foot.hidden = true;
});
const key = () => {
  const data = frame.contentDocument?.getElementById("data");
  return data ? JSON.parse(data.textContent).key : null;
};
async function open(url) {
  const answer = await fetch(url);
  if (answer.ok) frame.srcdoc = await answer.text();
}
function forget(spent) {
  try {
    const memory = JSON.parse(localStorage.getItem(key()) || "{}");
    for (const each of spent) delete memory[each];
    localStorage.setItem(key(), JSON.stringify(memory));
  } catch { /* a browser that keeps nothing */ }
}
function show() {
  const value = props.value;
  if (value?.spent?.length) forget(value.spent);
  if (!value?.parts) {
    root.replaceChildren(...emptyPage);
    return;
  }
  const nav = document.createElement("nav");
  nav.setAttribute("aria-label", "Boards");
  if (value.parts.length > 1) value.parts.forEach((url, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Board " + (index + 1);
    button.setAttribute("aria-pressed", index === 0);
    button.addEventListener("click", () => {
      for (const each of nav.children) each.setAttribute("aria-pressed", each === button);
      open(url);
    });
    nav.append(button);
  });
  root.replaceChildren(nav, frame);
  open(value.parts[0]);
}
watch("value", show);
show();
